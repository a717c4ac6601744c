#!/usr/bin/env bash
# Makes the servers that the demo and the tests talk to available on this machine: see --help.
# Needs bash (3.2 is enough) and coreutils.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
env_file=$root/target/services.env
log_file=$root/target/services.log
# How many seconds a started server may take until it answers.
start_secs=${SERVICES_START_SECS:-90}
# Debian keeps servers here, where cron's and most users' PATH does not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# shellcheck source=scripts/services/probe.sh
source "$root/scripts/services/probe.sh"

usage() {
  cat <<'EOT'
Usage: scripts/services.sh [rabbitmq] [postgres] [mariadb]

Makes git and the named servers (all three by default) available, and says where each one answers.
For each server, in this order, until it answers:
  1. what already answers at its address is used;
  2. else docker compose starts it, where an engine runs;
  3. else the installed server is started;
  4. else, as root on Debian or Ubuntu, apt-get installs it, and it is started;
  5. else this says what to install, and exits 1.

Addresses, from the environment or by default:
  AMQP_URL            amqp://guest:guest@127.0.0.1:5672/%2f
  TEST_POSTGRES_URL   postgres://postgres@127.0.0.1:5432/postgres
  TEST_MARIADB_URL    mysql://root@127.0.0.1:3306/test
A local RabbitMQ is told to enable its plugin rabbitmq_consistent_hash_exchange, which takes no restart.
Where a local database refuses its default login, a user `tokenkeeper` with the password `tokenkeeper`, who may
create databases, is made and used.

Writes target/services.env, the `export` lines that lead the tests to what was found or started here, and
target/services.log, what the started programs said. SERVICES_START_SECS (90) bounds the wait for a server.
EOT
}

main() {
  local services=() argument failed=0
  for argument in "$@"; do
    case $argument in
      rabbitmq | postgres | mariadb) services+=("$argument") ;;
      -h | --help) usage && return ;;
      *) echo "services.sh: unknown service '$argument'" >&2 && usage >&2 && return 2 ;;
    esac
  done
  ((${#services[@]} > 0)) || services=(rabbitmq postgres mariadb)

  mkdir -p "$root/target"
  : >"$log_file"
  local exports=''
  provide_git || failed=1
  for argument in "${services[@]}"; do
    provide "$argument" || failed=1
  done
  if ((failed)); then
    [[ ! -s $log_file ]] || { echo "--- the end of $log_file:" && tail -n 15 "$log_file"; } >&2
    return 1
  fi
  printf '%s' "$exports" >"$env_file"
  # After `sudo`, a build without it must still be able to write here. (BSD has no --reference, and no apt either.)
  chown --reference="$root" "$root/target" "$env_file" "$log_file" 2>/dev/null || true
}

# --- One service: look, start what does not answer, make the login work, report -------------------------------

# What is known about a service before anything was tried.
describe() {
  service=$1 fallback_url='' login_needs=' and may create databases'
  case $service in
    rabbitmq)
      label=RabbitMQ variable=AMQP_URL login_needs=''
      default_url=amqp://guest:guest@127.0.0.1:5672/%2f
      package=rabbitmq-server formula=rabbitmq unit=rabbitmq-server
      ;;
    postgres)
      label=PostgreSQL variable=TEST_POSTGRES_URL
      default_url=postgres://postgres@127.0.0.1:5432/postgres
      fallback_url=postgres://tokenkeeper:tokenkeeper@127.0.0.1:5432/postgres
      package=postgresql formula=postgresql@17 unit=postgresql
      ;;
    mariadb)
      label=MariaDB variable=TEST_MARIADB_URL
      default_url=mysql://root@127.0.0.1:3306/test
      fallback_url=mysql://tokenkeeper:tokenkeeper@127.0.0.1:3306/tokenkeeper
      package=mariadb-server formula=mariadb unit=mariadb
      ;;
  esac
  configured=${!variable:-}
  url=${configured:-$default_url}
}

provide() {
  describe "$1"
  if ! parse_url "$url"; then
    complain "$variable is not a URL such as $default_url"
    return 1
  fi
  how='already running'
  look
  if [[ $state == silent ]] && ! start; then
    complain "nothing answers at $host:$port; $(advice)"
    return 1
  fi
  if [[ $state == refused ]] && ! grant_login; then
    complain "$host:$port refuses user '$user' on '$database'; set $variable to a login that works$login_needs"
    return 1
  fi
  [[ $service != rabbitmq ]] || enable_plugin
  [[ $state != unchecked ]] || how+=', its login not tried (no client program here)'
  [[ $url != "$fallback_url" ]] || how+=', user tokenkeeper'
  report "$label" "$host:$port" "$how"
  [[ -n $configured ]] || exports+=$(printf 'export %s=%q' "$variable" "$url")$'\n'
}

# Sets `state` to what `url` meets, in the words of `probe`. Where the default login is refused, an earlier run may
# have made another one.
look() {
  local fallback
  state=$(probe "$service" "$url")
  [[ $state == refused && -z $configured && -n $fallback_url ]] || return 0
  fallback=$(probe "$service" "$fallback_url")
  case $fallback in
    ready | unchecked) url=$fallback_url state=$fallback ;;
  esac
}

# The roads to a running server, the least intrusive first. A server at an address that somebody chose is theirs.
start() {
  is_local && [[ $port == "$default_port" ]] || return 1
  start_by_compose || start_installed || install_and_start
}

is_local() { [[ $host == 127.0.0.1 || $host == localhost || $host == ::1 ]]; }

# What a person has to do where this script can do no more.
advice() {
  if ! is_local || [[ $port != "$default_port" ]]; then
    echo "start it there, or unset $variable to use $default_url"
  elif is_installed; then
    if ((EUID == 0)) || has brew; then
      echo "it is installed, and does not start"
    else
      echo "it is installed; start it with: sudo scripts/services.sh $service"
    fi
  elif has apt-get; then
    echo "install it with: sudo apt-get install $package   (or let this do it: sudo scripts/services.sh $service)"
  elif has brew; then
    echo "install it with: brew install $formula"
  else
    echo "install $label, or Docker with the compose plugin"
  fi
}

# The tests clone over smart HTTP, which git serves by a program of its own.
provide_git() {
  how='already installed'
  if ! has_git_http_backend; then
    if ! { can_apt_get && label=git apt_get_install git && has_git_http_backend; }; then
      label=git complain 'no git with git-http-backend; install it (Debian, Ubuntu: git; macOS: brew install git)'
      return 1
    fi
    how='installed by apt-get'
  fi
  report git git-http-backend "$how"
}

has_git_http_backend() {
  has git && [[ -x $(git --exec-path)/git-http-backend ]]
}

# --- Starting and installing ----------------------------------------------------------------------------------

start_by_compose() {
  has docker && docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1 || return 1
  tell 'starting it by docker compose'
  logged docker compose --project-directory "$root" up --detach --wait "$service" || return 1
  how='started by docker compose'
  await_answer
}

start_installed() {
  is_installed || return 1
  if has brew; then
    started_by brew services start "$(installed_formula)"
  elif ((EUID != 0)); then
    return 1
  else
    tell 'starting the installed server'
    "start_$service"
  fi && await_answer
}

install_and_start() {
  can_apt_get && ! is_installed || return 1
  apt_get_install "$package" && start_installed || return 1
  how="installed by apt-get, $how"
}

is_installed() {
  if has brew; then
    [[ -n $(installed_formula) ]]
  else
    case $service in
      rabbitmq) has rabbitmq-server ;;
      # postgresql-common brings pg_ctlcluster without any server to start.
      postgres) [[ -n $(debian_cluster) ]] || has_unit ;;
      mariadb) has mariadbd || has_unit ;;
    esac
  fi
}

installed_formula() {
  brew list --formula -1 2>/dev/null | grep -E "^${formula%@*}(@|\$)" | tail -n 1
}

# The PostgreSQL cluster of Debian's tools that listens on our port, as "version name".
debian_cluster() {
  has pg_lsclusters || return 0
  pg_lsclusters --no-header | while read -r version name cluster_port _; do
    [[ $cluster_port != "$port" ]] || echo "$version $name"
  done | tail -n 1
}

has_unit() { [[ -d /run/systemd/system ]] && systemctl cat "$unit" >/dev/null 2>&1; }

start_rabbitmq() {
  if has_unit; then
    started_by systemctl start "$unit"
  else
    # An Erlang node is named after its host, and does not start where that name has no address (containers).
    getent hosts "$(uname -n)" >/dev/null || export RABBITMQ_NODENAME=rabbit@localhost
    started_by rabbitmq-server -detached
  fi
}

start_postgres() {
  local cluster
  cluster=$(debian_cluster)
  if [[ -n $cluster ]]; then
    # Debian's postgresql.service is an umbrella: started once, it does not start a cluster that stopped since.
    # shellcheck disable=SC2086  # two words, the version and the name
    started_by pg_ctlcluster $cluster start
  else
    started_by systemctl start "$unit"
  fi
}

start_mariadb() {
  if has_unit; then
    started_by systemctl start "$unit"
  else
    # The folder of its socket is on a tmpfs, which only an init system fills at boot.
    install -d -o mysql -g mysql /run/mysqld
    started_by start-stop-daemon --start --oknodo --background --exec "$(command -v mariadbd)" -- --user=mysql
  fi
}

# Runs a command that starts a server, and remembers it for the report.
started_by() {
  how="started by ${1##*/}"
  logged "$@"
}

await_answer() {
  local deadline=$((SECONDS + start_secs))
  while look && [[ $state == silent ]]; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

can_apt_get() { ((EUID == 0)) && has apt-get; }

# Installs packages without starting anything: a package starts its server in ways that fail in containers and take
# apt-get with them, so that start_installed alone starts servers. A policy that the machine has already stays.
apt_get_install() (
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  tell "installing $* by apt-get"
  # PostgreSQL takes its first cluster's encoding from the locale.
  export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 LC_ALL=C.UTF-8
  patience=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
  logged apt-get "${patience[@]}" update && logged apt-get "${patience[@]}" install --yes --no-install-recommends "$@"
)

# --- RabbitMQ's plugin for partitions -------------------------------------------------------------------------

# A running broker takes a plugin in without a restart. One that is not ours to change is used as it is: then the tests
# of partitions say what they miss.
enable_plugin() {
  local plugin=rabbitmq_consistent_hash_exchange enabled
  is_local && enabled=$(rabbitmq_plugins list --quiet --enabled --minimal 2>>"$log_file") || enabled=unknown
  [[ $'\n'$enabled$'\n' != *$'\n'$plugin$'\n'* ]] || return 0
  if [[ $enabled != unknown ]] && logged rabbitmq_plugins enable --quiet "$plugin"; then
    how+=", $plugin enabled"
  else
    tell "partitions (broker.partitions) need: rabbitmq-plugins enable $plugin"
  fi
}

# Runs rabbitmq-plugins against the broker: the machine's own as root, else the one that docker compose runs.
rabbitmq_plugins() (
  if ((EUID == 0)) && has rabbitmq-plugins; then
    # As start_rabbitmq names it.
    getent hosts "$(uname -n)" >/dev/null || export RABBITMQ_NODENAME=rabbit@localhost
    rabbitmq-plugins "$@" </dev/null
  elif has docker; then
    docker compose --project-directory "$root" exec --no-TTY rabbitmq rabbitmq-plugins "$@" </dev/null
  else
    return 1
  fi
)

# --- The tests' login -----------------------------------------------------------------------------------------

# A freshly installed database lets its administrator in by the local socket only: make a user for TCP.
grant_login() {
  [[ -z $configured && -n $fallback_url ]] && is_local || return 1
  "grant_login_$service" >>"$log_file" 2>&1 || return 1
  look
  [[ $state != refused ]]
}

grant_login_postgres() {
  local psql=(psql -X -q -v ON_ERROR_STOP=1 -p "$port" -d postgres)
  ((EUID != 0)) || psql=(runuser -u postgres -- "${psql[@]}")
  cd / && "${psql[@]}" <<'EOT'
SELECT 'CREATE ROLE tokenkeeper' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tokenkeeper') \gexec
ALTER ROLE tokenkeeper LOGIN CREATEDB PASSWORD 'tokenkeeper';
EOT
}

grant_login_mariadb() {
  "$(client_program mariadb)" --protocol=socket <<'EOT'
CREATE DATABASE IF NOT EXISTS tokenkeeper;
CREATE USER IF NOT EXISTS tokenkeeper@localhost IDENTIFIED BY 'tokenkeeper';
CREATE USER IF NOT EXISTS tokenkeeper@127.0.0.1 IDENTIFIED BY 'tokenkeeper';
GRANT ALL PRIVILEGES ON *.* TO tokenkeeper@localhost, tokenkeeper@127.0.0.1;
EOT
}

# --- Talking --------------------------------------------------------------------------------------------------

# Runs a command with its output in the log: a server in the background must not hold on to our terminal or pipe.
logged() {
  echo "\$ $*" >>"$log_file"
  "$@" >>"$log_file" 2>&1 </dev/null
}

report() { printf '%-10s  %-16s  %s\n' "$1" "$2" "$3"; }

tell() { printf '%-10s  … %s\n' "$label" "$1" >&2; }

complain() { printf '%-10s  FAILED: %s\n' "$label" "$1" >&2; }

main "$@"
