#!/usr/bin/env bash
# rabbitmqctl of the broker that scripts/services.sh found or started: the machine's own as root, else the one of docker
# compose. For tests that need users of their own.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

if ((EUID == 0)) && command -v rabbitmqctl >/dev/null; then
  # As services.sh names it.
  getent hosts "$(uname -n)" >/dev/null || export RABBITMQ_NODENAME=rabbit@localhost
  exec rabbitmqctl "$@"
elif command -v docker >/dev/null; then
  exec docker compose --project-directory "$root" exec --no-TTY rabbitmq rabbitmqctl "$@"
else
  echo "rabbitmqctl.sh: run it as root where RabbitMQ is installed, or start RabbitMQ by docker compose" >&2
  exit 1
fi
