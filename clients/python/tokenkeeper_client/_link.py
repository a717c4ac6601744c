"""One connection to the broker: requests out, replies in by direct reply-to, any number in flight."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)
from yarl import URL

from .errors import BrokerRefusedError, UnroutableError, plain

T = TypeVar("T")

# The libraries below raise all kinds of errors when a connection breaks under them, even a bare `Exception`.

# At DEBUG this one writes frames as they are, with the tokens in them.
logging.getLogger("aiormq.connection").addFilter(lambda record: record.levelno > logging.DEBUG)

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
CONNECT_SECS = 10.0
# A connection whose other end is gone without a word is noticed after two of these.
HEARTBEAT_SECS = 10
# Exclusive queues of events that nobody reads in time forget the oldest.
EVENTS_MOST = 10_000
EVENTS_IN_HAND = 100
# So many messages may wait for the broker's confirm. A broker whose memory is full confirms none, and takes none.
UNCONFIRMED_MOST = 4096

_REFUSALS = (ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed)


class LinkLost(Exception):
    """The connection or its channel broke. The question may have arrived if it was ``sent``."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the connection to the broker broke")
        self.sent = sent


@dataclass
class _Question:
    answer: asyncio.Future[bytes]
    exchange: str
    routing_key: str
    confirmed: bool = False

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def lose(self, cause: BaseException | None) -> None:
        """The channel is gone: by what was asked here, if the broker says so."""
        if self.confirmed or not isinstance(cause, _REFUSALS) or not can_mean(str(cause), self.exchange):
            self.fail(LinkLost(sent=True))
        elif isinstance(cause, ChannelNotFoundEntity):
            # It was there when the link looked for it.
            self.fail(UnroutableError(self.exchange, self.routing_key))
        else:
            self.fail(BrokerRefusedError(words(cause)))


class Link:
    """A connection with the channel that publishes and gets the replies. Once it is ``lost`` it stays so."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.lost = asyncio.Event()
        self._connection = connection
        self._channel = channel
        self._waiting: dict[str, _Question] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(UNCONFIRMED_MOST)

    @classmethod
    async def open(cls, url: URL, context: ssl.SSLContext | None) -> Link:
        """Connects. Raises what `words` puts into words."""
        url = url if "heartbeat" in url.query else url.update_query(heartbeat=HEARTBEAT_SECS)
        connection = await aio_pika.connect(url, ssl_context=context, timeout=CONNECT_SECS)
        try:
            async with asyncio.timeout(CONNECT_SECS):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                link = cls(connection, channel)
                connection.close_callbacks.add(link._on_close)
                channel.close_callbacks.add(link._on_close)
                # Without acks, and over the channel that publishes: so the broker wants it.
                replies = await channel.get_queue(DIRECT_REPLY_TO, ensure=False)
                await replies.consume(link._on_reply, no_ack=True)
        except BaseException:
            await connection.close()
            raise
        return link

    async def ask(self, exchange: str, routing_key: str, write: Callable[[], aio_pika.Message]) -> bytes:
        """Publishes what is written when its turn comes, and returns the body of the reply. Cancel it to stop waiting."""
        await self._see(exchange, routing_key)
        await self._room.acquire()
        try:
            if self.lost.is_set():
                raise LinkLost(sent=False)
            message = write()
        except BaseException:
            self._room.release()
            raise
        assert message.correlation_id is not None
        question = _Question(asyncio.get_running_loop().create_future(), exchange, routing_key)
        self._waiting[message.correlation_id] = question
        # A task of its own: a publish that is cancelled half-way would upset the library's count of confirms.
        self._spawn(self._publish(message, question))
        try:
            return await question.answer
        finally:
            del self._waiting[message.correlation_id]

    async def _publish(self, message: aio_pika.Message, question: _Question) -> None:
        exchange, routing_key = question.exchange, question.routing_key
        try:
            to = await self._channel.get_exchange(exchange, ensure=False)
            await to.publish(message, routing_key, mandatory=True)
            question.confirmed = True
        except PublishError:
            question.fail(UnroutableError(exchange, routing_key))
        except DeliveryError:
            question.fail(BrokerRefusedError("the broker could not take the message", retryable=True))
        except Exception as cause:
            question.lose(cause)
        finally:
            # Also of one that nobody waits for any more: until the broker has confirmed it the library keeps it.
            self._room.release()

    async def _see(self, exchange: str, routing_key: str) -> None:
        """Looks for the exchange, once: publishing to none costs the channel, and all that wait on it."""
        look = self._looks.get(exchange)
        if look is None or (look.done() and (look.cancelled() or look.exception() is not None)):
            look = self._looks[exchange] = self._spawn(self._look(exchange))
        try:
            await shared(look)
        except ChannelNotFoundEntity:
            raise UnroutableError(exchange, routing_key) from None
        except Exception:
            raise LinkLost(sent=False) from None

    async def _look(self, exchange: str) -> None:
        async with asyncio.timeout(CONNECT_SECS), self._connection.channel(publisher_confirms=False) as channel:
            await channel.get_exchange(exchange, ensure=True)

    @asynccontextmanager
    async def listen(
        self, exchange: str, patterns: tuple[str, ...]
    ) -> AsyncIterator[asyncio.Queue[AbstractIncomingMessage | None]]:
        """The events of these patterns from now on, each to be acked; None when there will be no more."""
        heard: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        try:
            channel = await self._connection.channel(publisher_confirms=False)
            channel.close_callbacks.add(lambda *_: heard.put_nowait(None))
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda *_: heard.put_nowait(None))
            await channel.set_qos(prefetch_count=EVENTS_IN_HAND)
            queue = await channel.declare_queue(exclusive=True, arguments={"x-max-length": EVENTS_MOST})
            for pattern in patterns:
                await queue.bind(exchange, pattern)
            await queue.consume(heard.put)
        except ChannelNotFoundEntity:
            raise UnroutableError(exchange, "events") from None
        except ChannelAccessRefused as refused:
            raise BrokerRefusedError(words(refused)) from None
        except Exception:
            raise LinkLost(sent=False) from None
        try:
            yield heard
        finally:
            if not channel.is_closed:
                await channel.close()

    async def close(self) -> None:
        """Closes it. Who still waits gets `LinkLost`."""
        self._lose(None)
        await self._connection.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        # A reply that nobody waits for is a late one, or somebody else's guess.
        question = self._waiting.get(message.correlation_id or "")
        if question is not None and not question.answer.done():
            question.answer.set_result(message.body)

    def _on_close(self, _: object, cause: BaseException | None) -> None:
        self._lose(cause)

    def _lose(self, cause: BaseException | None) -> None:
        self.lost.set()
        for question in list(self._waiting.values()):
            question.lose(cause)
        if not self._connection.is_closed:
            # The channel alone broke. The next connection brings another one.
            self._spawn(self._connection.close())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # Without this, asyncio would log an error that nobody awaits.
        _ = task.cancelled() or task.exception()


async def shared(task: asyncio.Task[T]) -> T:
    """The outcome of a task that many wait for, none of whom ends it. Where the library ended it: `LinkLost`."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        waiting = asyncio.current_task()
        if waiting is not None and waiting.cancelling():
            raise
        raise LinkLost(sent=False) from None


def is_refusal(cause: BaseException) -> bool:
    """Whether trying again does not help until somebody mends the broker or the URL."""
    return isinstance(cause, (AuthenticationError, ProbableAuthenticationError, ConnectionNotAllowed))


def can_mean(said: str, exchange: str) -> bool:
    """Whether the broker, which closes a channel with these words, can mean what was published to this exchange."""
    return f"exchange '{exchange}'" in said or "exchange '" not in said


def words(cause: BaseException) -> str:
    """What the broker or the system says, as it may be shown."""
    return plain(str(cause) or type(cause).__name__)
