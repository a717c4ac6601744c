#!/usr/bin/env bash
# Checks tokenkeeper's promises while everything it stands on is broken: see --help. Needs bash (3.2 is enough) and a
# Rust toolchain.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/services/probe.sh
source scripts/services/probe.sh

usage() {
  cat <<'EOT'
Usage: scripts/chaos.sh [SCENARIO]... [OPTION]...

Plays heavy faults on real workers under load, prints a table of what came of it, and exits 1 where a promise of
ARCHITECTURE.md is broken. The table is also in target/chaos, as text and as JSON a scenario. All scenarios take forty
minutes; without names all are played:
  storm          20,000 requests while workers are killed, broker and database restarted, a provider fails
  rolling        SIGTERM and restart of all workers in turn, 20 times
  frozen         a worker frozen in the middle of a refresh, and thawed when another one has taken over
  database       the database away between the provider's answer and the store; SIGTERM then; the broker away too
  bulkhead       a host that hangs for ever, beside one that works
  broker         broker stopped, restarted, starved; queue deleted, channels closed, connections cut
  broker-node    in a RabbitMQ cluster of three: a node killed, frozen, two of them away, the leaders moved
  database-away  the database away under load: /readyz says so, and everything goes on by itself
  readonly       the database answers and takes no writes any more: an outage as any other
  standby        the database's address leads to a standby
  galera         a Galera node takes no queries (skipped where Debian's mariadb-server and galera-4 are not installed)
  restore        a backup restored under load: no dead token is handed out, nobody must log in again
  hostile        5 minutes of an honest publisher beside one who means harm, after a minute alone
  soak           10 minutes of load: memory, file descriptors, connections and channels stay flat

Options:
  --quick        a small version of everything, in about five minutes
  --requests N   how many requests the storm sends (20000)
  --users N      how many users the storm has (500)
  --rate N       requests a second, in every scenario under load (150; of the honest publisher in hostile 100)
  --rounds N     rounds of rolling (20), frozen (4, of 5 tries each) and database (10, of 20 tries each)
  --minutes N    how long the soak takes (10), and the hostile publisher goes on (5)
  --attack NAME  in hostile nothing but this, to find out which one breaks something; can be given several times:
                 own-queues, direct-reply-to, refusing-queues, long-reservation, poison, failing-users, slow-hosts,
                 admin-connections, flood
  --close-after  in the storm the provider also acts and then closes the connection, which costs tokens
  --seed N       repeats the choices of a run: which user asks when, and which call fails
  --keep         keeps the logs of workers and servers also where everything held

RabbitMQ and PostgreSQL are started for this run alone, on ports of their own, in a temporary folder; the machine's
own servers are left alone. Their programs must be installed; as root on Debian or Ubuntu, apt-get installs them.
Whatever was started is gone at the end, also by Ctrl-C. CHAOS_PROFILE=release plays on optimised workers.
EOT
}

main() {
  local argument
  for argument in "$@"; do
    case $argument in
      -h | --help) usage && return ;;
    esac
  done
  if ! has cargo; then
    echo 'chaos.sh: there is no cargo; install a Rust toolchain: https://rustup.rs' >&2
    return 1
  fi
  provide_programs
  # `hostile` opens some 1,500 connections. What a system allows nobody stays as it is.
  ulimit -n "$(ulimit -Hn)" 2>/dev/null || true

  # The whole workspace's choice of features, as in every other build of it, so that nothing is compiled twice. The
  # messages tell where the programs are, wherever cargo is set up to put them.
  local messages chaos
  messages=$(cargo build --locked --workspace --profile "${CHAOS_PROFILE:-dev}" --bin tokenkeeper --bin chaos \
    --message-format json-render-diagnostics)
  chaos=$(sed -n 's|.*"executable":"\([^"]*/chaos\)".*|\1|p' <<<"$messages")
  exec "$chaos" "$@"
}

# A server in a container is no help here: it is to be stopped, starved and started again.
provide_programs() {
  if are_installed; then return; fi
  if ((EUID == 0)) && has apt-get; then
    echo 'Installing PostgreSQL and RabbitMQ (not starting them) …' >&2
    # Packages start their servers, which fails in containers and is not wanted; a policy that is there stays.
    local policy=/usr/sbin/policy-rc.d made=''
    if [[ ! -e $policy ]]; then
      printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=$policy
    fi
    DEBIAN_FRONTEND=noninteractive apt-get update -q >&2 &&
      DEBIAN_FRONTEND=noninteractive apt-get install -q --yes --no-install-recommends \
        postgresql rabbitmq-server >&2 || true
    [[ -z $made ]] || rm -f "$made"
  fi
  if ! are_installed; then
    echo 'chaos.sh: install the programs of PostgreSQL and RabbitMQ' \
      '(Debian, Ubuntu: apt-get install postgresql rabbitmq-server; macOS: brew install postgresql rabbitmq)' >&2
    return 1
  fi
}

are_installed() {
  PATH=$PATH:/usr/sbin:/sbin
  local initdb
  initdb=$(command -v initdb || find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | head -n 1)
  [[ -n $initdb ]] && has rabbitmq-server
}

main "$@"
