# shellcheck shell=bash
# Asks a server, in its own protocol, whether it is there and takes a login: an open port alone says little (a
# container's proxy listens before its server does). Sourced by services.sh. Needs bash alone, so that it works
# before anything is installed.

# How many seconds a server may take for one answer.
answer_secs=3

# Prints what a URL of a service (rabbitmq, postgres, mariadb) meets: ready; refused (it answers, and does not take
# the login); silent; or unchecked (it wants a password, and no client program is here to try ours with).
probe() {
  local service=$1 answer
  parse_url "$2" || return 1
  answer=$("probe_$service" 2>/dev/null) || true
  echo "${answer:-silent}"
}

# Takes a URL apart into `scheme`, `user`, `password`, `host`, `port`, `database` and the scheme's `default_port`.
parse_url() {
  local pattern='^([a-z]+)://(([^:@/]*)(:([^@/]*))?@)?(\[[0-9A-Fa-f:]+]|[^]:/?@[]+)(:([0-9]+))?(/([^?]*))?([?].*)?$'
  [[ $1 =~ $pattern ]] || return 1
  scheme=${BASH_REMATCH[1]}
  case $scheme in
    amqp) default_port=5672 ;;
    amqps) default_port=5671 ;;
    postgres | postgresql) default_port=5432 ;;
    mysql) default_port=3306 ;;
    *) return 1 ;;
  esac
  user=$(percent_decode "${BASH_REMATCH[3]}")
  password=$(percent_decode "${BASH_REMATCH[5]}")
  host=${BASH_REMATCH[6]#[}
  host=${host%]}
  port=${BASH_REMATCH[8]:-$default_port}
  database=$(percent_decode "${BASH_REMATCH[10]}")
}

percent_decode() { printf '%b' "${1//%/\\x}"; }

has() { command -v "$1" >/dev/null 2>&1; }

# --- One function a protocol ----------------------------------------------------------------------------------

# AMQP 0-9-1: the protocol header, and a login by PLAIN. https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf
probe_rabbitmq() {
  local credentials
  connect
  # Bash speaks no TLS: an open port has to do.
  [[ $scheme != amqps ]] || { echo unchecked && return; }
  send 414d515000000901
  receive_amqp_method && [[ $method == 000a000a ]] || return 1 # connection.start
  credentials=00$(to_hex "$user")00$(to_hex "$password")
  # connection.start-ok: no client properties, PLAIN, the credentials, a locale.
  send_amqp_method "000a000b" "00000000" "05$(to_hex PLAIN)" \
    "$(printf '%08x' $((${#credentials} / 2)))$credentials" "05$(to_hex en_US)"
  if receive_amqp_method && [[ $method == 000a001e ]]; then # connection.tune
    echo ready
  else
    echo refused
  fi
}

send_amqp_method() {
  local payload
  payload=$(printf '%s' "$@")
  send "010000$(printf '%08x' $((${#payload} / 2)))${payload}ce"
}

# Sets `method` to the class and method id of the next frame.
receive_amqp_method() {
  receive 7 && [[ $reply == 010000* ]] || return 1
  receive $((16#${reply:6} + 1)) || return 1
  method=${reply:0:8}
}

# The startup packet. https://www.postgresql.org/docs/current/protocol-message-formats.html
probe_postgres() {
  local parameters
  connect
  parameters=00030000$(to_hex user)00$(to_hex "$user")00$(to_hex database)00$(to_hex "$database")0000
  send "$(printf '%08x' $((${#parameters} / 2 + 4)))$parameters"
  receive 1 || return 1
  case $reply in
    52) ;;                        # R: authentication
    45) postgres_error; return ;; # E: error
    *) return 1 ;;
  esac
  receive 8 || return 1
  if [[ ${reply:8} != 00000000 ]]; then
    try_password
  elif receive 1 && [[ $reply != 45 ]]; then
    send 5800000004 # X: terminate
    echo ready
  else
    echo refused
  fi
}

# An error is a refusal, unless it says 57P03: the server is still starting.
postgres_error() {
  receive 4 && receive $((16#$reply - 4)) || return 1
  [[ $reply == *3537503033* ]] || echo refused
}

# The server's greeting, and a login without a password. https://mariadb.com/kb/en/connection/
probe_mariadb() {
  local answer
  connect
  receive_mariadb_packet || return 1
  case $packet in
    0a*) ;;                        # the greeting, protocol version 10
    ff*) echo refused && return ;; # an error, such as too many connections
    *) return 1 ;;
  esac
  if [[ -n $password ]]; then
    try_password
    return
  fi
  # Capabilities (long password, database, protocol 4.1, secure connection, plugin), 16 MiB packets, utf8mb4.
  answer=$(printf '%s' 09820800 00000001 2d "$(printf '%046d' 0)" \
    "$(to_hex "$user")" 00 00 "$(to_hex "$database")" 00 "$(to_hex mysql_native_password)" 00)
  send "$(printf '%02x' $((${#answer} / 2)))000001$answer"
  receive_mariadb_packet || return 1
  # fe: another plugin is wanted; without a password, each takes an empty answer.
  [[ $packet != fe* ]] || { send 00000003 && receive_mariadb_packet; } || return 1
  case $packet in
    00*) send 0100000001 && echo ready ;; # COM_QUIT
    *) echo refused ;;
  esac
}

# Sets `packet` to the payload of the next packet: a little-endian length of three bytes and a number precede it.
receive_mariadb_packet() {
  receive 4 && receive $((16#${reply:4:2}${reply:2:2}${reply:0:2})) || return 1
  packet=$reply
}

# Password exchanges are more than a shell should do: the database's own client tries ours.
try_password() {
  if [[ -z $password ]]; then
    echo refused
  elif ! has "$(client_program "$service")"; then
    echo unchecked
  elif "log_in_$service" </dev/null >/dev/null 2>&1; then
    echo ready
  else
    echo refused
  fi
}

client_program() {
  case $1 in
    postgres) echo psql ;;
    mariadb) if has mariadb; then echo mariadb; else echo mysql; fi ;;
  esac
}

log_in_postgres() {
  PGPASSWORD=$password PGCONNECT_TIMEOUT=$answer_secs psql -X -h "$host" -p "$port" -U "$user" -d "$database" \
    -c 'SELECT 1'
}

log_in_mariadb() {
  MYSQL_PWD=$password "$(client_program mariadb)" --no-defaults --protocol=tcp --connect-timeout="$answer_secs" \
    -h "$host" -P "$port" -u "$user" -D "$database" -e 'SELECT 1'
}

# --- Bytes ----------------------------------------------------------------------------------------------------

# Opens descriptor 3 to the server, or ends the (sub)shell.
connect() { exec 3<>"/dev/tcp/$host/$port"; }

# Sends bytes that are given as hex.
send() {
  local hex=$1 bytes='' i
  for ((i = 0; i < ${#hex}; i += 2)); do bytes+="\\x${hex:i:2}"; done
  printf '%b' "$bytes" >&3
}

# Sets `reply` to the next bytes, as hex. With NUL as its delimiter `read` ends at one, and so keeps what it drops.
receive() {
  local count=$1 byte LC_ALL=C
  reply=''
  while ((count-- > 0)); do
    IFS='' read -r -d '' -n 1 -t "$answer_secs" byte <&3 || return 1
    printf -v byte '%d' "'$byte"
    printf -v byte '%02x' $((byte & 255))
    reply+=$byte
  done
}

to_hex() {
  local text=$1 i byte LC_ALL=C
  for ((i = 0; i < ${#text}; i++)); do
    printf -v byte '%d' "'${text:i:1}"
    printf '%02x' $((byte & 255))
  done
}
