"""Asks for a token until there is one, or it is certain that there will be none: request.py USER HOST (pip install pika)."""

import json, os, sys, time, uuid

import pika

user, host = sys.argv[1:3]
deadline, replies = time.monotonic() + 30, {}
url = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()  # a message that no queue takes raises UnroutableError: no worker ever declared it
# Direct reply-to needs no queue. Consume it first, on the channel that publishes, without acks.
keep = lambda _channel, _method, properties, body: replies.update({properties.correlation_id: body})
channel.basic_consume("amq.rabbitmq.reply-to", keep, auto_ack=True)


def ask():
    asked, left = uuid.uuid4().hex, deadline - time.monotonic()
    body = json.dumps({"user_id": user, "host": host, "requested_lifetime_secs": 300})
    properties = pika.BasicProperties(
        reply_to="amq.rabbitmq.reply-to", correlation_id=asked, expiration=str(int(left * 1000)))
    channel.basic_publish(os.environ.get("PREFIX", "tokenkeeper"), "token.request", body, properties, mandatory=True)
    while asked not in replies and left > -1:  # a worker's last word comes up to a quarter of a second late
        connection.process_data_events(time_limit=0.25)
        left = deadline - time.monotonic()
    return json.loads(replies.pop(asked)) if asked in replies else sys.exit("no reply in time: does a worker run?")


while (reply := ask())["status"] == "error":
    error = reply["error"]
    pause = error.get("retry_after_secs", 1)
    if not error["retryable"] or time.monotonic() + pause >= deadline:
        sys.exit(f"{error['code']}: {error['message']}")
    connection.sleep(pause)
print("a token until", reply["token"]["reserved_until"])  # git clone https://{reply["token"]["userinfo"]}@{host}/…
