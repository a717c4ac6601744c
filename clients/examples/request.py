"""Asks for a token until there is one, or it is certain that there will be none: request.py USER HOST (pip install pika)."""

import json
import os
import sys
import time
import uuid

import pika

user, host = sys.argv[1:3]
deadline = time.monotonic() + 30
connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")))
channel = connection.channel()
channel.confirm_delivery()  # a message that no queue takes raises UnroutableError: no worker has declared it
# Direct reply-to needs no queue. Consume it first, on the channel that publishes, without acks.
replies = channel.consume("amq.rabbitmq.reply-to", auto_ack=True, inactivity_timeout=0.25)
next(replies)


def ask():
    body = json.dumps({"user_id": user, "host": host, "requested_lifetime_secs": 300})
    asked, left = uuid.uuid4().hex, int((deadline - time.monotonic()) * 1000)
    properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id=asked, expiration=str(left))
    channel.basic_publish(os.environ.get("PREFIX", "tokenkeeper"), "token.request", body, properties, mandatory=True)
    for _, reply, body in replies:  # nothing, at least four times a second
        if reply is not None and reply.correlation_id == asked:
            return json.loads(body)
        if time.monotonic() > deadline + 1:  # a worker's last word comes up to a quarter of a second late
            sys.exit("no reply in time: does a worker run?")


while (reply := ask())["status"] == "error":
    error = reply["error"]
    pause = error.get("retry_after_secs", 1)
    if not error["retryable"] or time.monotonic() + pause >= deadline:
        sys.exit(f"{error['code']}: {error['message']}")
    connection.sleep(pause)
print("a token until", reply["token"]["reserved_until"])  # git clone https://{reply["token"]["userinfo"]}@{host}/…
