"""What the tests stand on: a worker that answers as the test says, and a wire that can be cut."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from unittest import IsolatedAsyncioTestCase

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from tokenkeeper_client import Client

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
BROKER = aio_pika.connection.make_url(AMQP_URL)
KINDS = {
    "token.request": "token-requests",
    "workspace.start": "workspace-starts",
    "token.store": "token-stores",
    "token.report": "token-reports",
}
Body = dict[str, Any]
# They warn of each connection and consumer that a test ends on purpose.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)
logging.getLogger("aio_pika").setLevel(logging.CRITICAL)
Rule = Callable[[Body, AbstractIncomingMessage], Awaitable[Body | bytes | None]]


def granted(user_id: str, host: str, value: str = "s3cret-token") -> Body:
    """An ok reply, in clear."""
    return {
        "status": "ok",
        "user_id": user_id,
        "host": host,
        "token": {
            "value": value,
            "username": "x-token-auth",
            "userinfo": f"x-token-auth:{value}",
            "scopes": ["repo"],
            "updated_at": "2020-01-01T01:00:00.000Z",
            "expires_at": None,
            "reserved_until": "2020-01-01T01:05:00.000Z",
        },
        "refresh": "none",
        "warnings": [],
    }


def refused(code: str, retryable: bool = False, **more: Any) -> Body:
    return {"status": "error", "error": {"code": code, "message": "m", "retryable": retryable, **more}}


async def grant(body: Body, _: AbstractIncomingMessage) -> Body:
    """The rule of a worker that has a token for everybody."""
    return granted(body["user_id"], body["host"])


class ScriptedWorker:
    """Consumes the contract's queues under a prefix of its own, and answers by a rule."""

    def __init__(self) -> None:
        self.prefix = f"tk-clients-{uuid.uuid4().hex[:12]}"
        self.rule: Rule = grant
        self.messages: list[AbstractIncomingMessage] = []
        self.arrived = asyncio.Event()

    async def start(self) -> None:
        self._connection = await aio_pika.connect(AMQP_URL)
        self.channel = await self._connection.channel()
        exchange = await self.channel.declare_exchange(self.prefix, "direct", durable=True)
        self.events = await self.channel.declare_exchange(f"{self.prefix}.events", "topic", durable=True)
        self._queues = []
        for kind, name in KINDS.items():
            queue = await self.channel.declare_queue(f"{self.prefix}.{name}", durable=True)
            await queue.bind(exchange, kind)
            await queue.consume(self._on_message)
            self._queues.append(queue)
        self._exchanges = [exchange, self.events]

    async def stop(self) -> None:
        for queue in self._queues:
            await queue.delete(if_unused=False, if_empty=False)
        for exchange in self._exchanges:
            await exchange.delete()
        await self._connection.close()

    async def reply(self, message: AbstractIncomingMessage, body: Body | bytes, to: str | None = None) -> None:
        """Publishes a reply; `to` is a correlation id other than the message's."""
        assert message.reply_to is not None
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.channel.default_exchange.publish(
            aio_pika.Message(encoded, correlation_id=to or message.correlation_id), message.reply_to
        )

    async def event(self, body: Body | bytes, message_id: str | None = None) -> None:
        """Publishes an event, routed by its name."""
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        name = "" if isinstance(body, bytes) else str(body.get("event"))
        await self.events.publish(aio_pika.Message(encoded, message_id=message_id), name, mandatory=False)

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        await message.ack()
        self.messages.append(message)
        self.arrived.set()
        body = await self.rule(json.loads(message.body), message)
        if body is not None:
            with suppress(aio_pika.exceptions.AMQPError):
                await self.reply(message, body)


class Wire:
    """A TCP proxy to the broker, which can be cut."""

    async def start(self) -> None:
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self._is_open = True
        self.cut_after: int | None = None
        """How many bytes of the broker's the next connection lets through, and no more."""
        self.to_broker, self.from_broker = asyncio.Event(), asyncio.Event()
        """Cleared, nothing arrives any more in this direction; what is held goes on when it is set again."""
        self.to_broker.set()
        self.from_broker.set()
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def url(self) -> str:
        return str(BROKER.with_host("127.0.0.1").with_port(self.port))

    def cut(self) -> None:
        """Breaks every connection without a word. New ones are let through."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def refuse(self) -> None:
        """Breaks every connection, and lets no new one through."""
        self._is_open = False
        self.cut()

    def admit(self) -> None:
        self._is_open = True

    async def stop(self) -> None:
        self._server.close()
        self.to_broker.set()
        self.from_broker.set()
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_open:
            writer.transport.abort()
            return
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection(BROKER.host, BROKER.port or 5672)
        self._writers |= {writer, far_writer}
        budget, self.cut_after = self.cut_after, None
        for source, sink, flows, most in (
            (reader, far_writer, self.to_broker, None),
            (far_reader, writer, self.from_broker, budget),
        ):
            task = asyncio.create_task(self._pump(source, sink, flows, most))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    @staticmethod
    async def _pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, flows: asyncio.Event, most: int | None
    ) -> None:
        with suppress(OSError):
            while most != 0 and (data := await source.read(65536)):
                await flows.wait()
                sink.write(data[:most])
                await sink.drain()
                most = None if most is None else max(0, most - len(data))
        sink.close()


class WithScriptedWorker(IsolatedAsyncioTestCase):
    """A scripted worker, and a client that takes its tokens in clear."""

    async def asyncSetUp(self) -> None:
        # Hundreds of requests at once take seconds where each step is watched.
        asyncio.get_running_loop().set_debug(False)
        self.worker = ScriptedWorker()
        await self.worker.start()
        self.addAsyncCleanup(self.worker.stop)
        self.client = self.another_client()

    def another_client(self, url: str = AMQP_URL, **options: Any) -> Client:
        """A client of this worker's, which is closed when the test ends."""
        client = Client(url, **{"prefix": self.worker.prefix, "sealed": False, "timeout": 10, **options})
        self.addAsyncCleanup(client.close)
        return client
