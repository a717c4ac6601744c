#!/usr/bin/env bash
# Asks for a token until there is one, or it is certain that there will be none: request.sh USER HOST (apt install amqp-tools jq).
# These tools set no correlation_id, no expiration and no mandatory flag: so each reply has a queue of its own, and `timeout` ends
# the wait. The URL stands in the arguments of programs, which the machine's other users can read; see --authfile.
set -euo pipefail
user=$1 host=$2 deadline=$((SECONDS + 30))
url=${AMQP_URL:-amqp://guest:guest@127.0.0.1:5672/%2f} replies=''
trap '[[ -z $replies ]] || amqp-delete-queue --url "$url" --queue "$replies" >/dev/null' EXIT

ask() {
  jq -cn --arg user "$user" --arg host "$host" '{user_id: $user, host: $host, requested_lifetime_secs: 300}' |
    amqp-publish --url "$url" --exchange "${PREFIX:-tokenkeeper}" --routing-key token.request --reply-to "$replies"
  timeout $((deadline - SECONDS + 1)) amqp-consume --url "$url" --queue "$replies" --count 1 --no-ack cat
}

replies=$(amqp-declare-queue --url "$url" --queue "my-service-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')")
while reply=$(ask) || { echo 'no reply in time: does a worker run?' >&2 && exit 1; }; do
  if jq -e '.status == "ok"' <<<"$reply" >/dev/null; then
    jq -r '"a token until \(.token.reserved_until)"' <<<"$reply" # git clone "https://$(jq -r .token.userinfo <<<"$reply")@$host/…"
    exit
  fi
  pause=$(jq -r '.error.retry_after_secs // 1' <<<"$reply")
  if ! jq -e .error.retryable <<<"$reply" >/dev/null || ((SECONDS + pause >= deadline)); then
    jq -r '.error | "\(.code): \(.message)"' <<<"$reply" >&2
    exit 1
  fi
  sleep "$pause"
done
