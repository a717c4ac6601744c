"""The client: the contract's four messages as methods, and events as a stream."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import ssl
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import aio_pika
from yarl import URL

from . import _replies, wire
from ._link import DIRECT_REPLY_TO, Link, LinkLost, is_refusal, shared, words
from ._replies import Token
from ._sealed import ReplyKey, public_key, seal
from .errors import (
    BrokerRefusedError,
    ClosedError,
    ConnectionLostError,
    NoReplyError,
    RefusedError,
    TokenkeeperError,
)

T = TypeVar("T")
Body = Mapping[str, object]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_HASH_EXCHANGES = {
    "token.request": "token-requests",
    "workspace.start": "workspace-starts",
    "token.store": "token-stores",
}
_READS = frozenset(["token.request", "workspace.start"])
# The broker counts a request's time in milliseconds.
_SHORTEST_SECS, _LONGEST_SECS = 0.001, 86_400


@dataclass(frozen=True)
class Login:
    """A pair that a login flow obtained. Its text form shows no secret. Its dates need a time zone."""

    user_id: str
    """Whose pair it is, in the words of your platform."""
    host: str
    """The source-code host, as it stands in clone URLs, with a port where there is one."""
    value: str = field(repr=False)
    """The access token."""
    refresh_token: str | None = field(default=None, repr=False)
    """Without it the pair cannot be refreshed."""
    expires_at: datetime | None = None
    """When the access token ends. None: never."""
    refresh_token_expires_at: datetime | None = None
    """When the refresh token ends. None: not known."""
    username: str | None = None
    """What git sends as the user name. None: the one of the host's provider."""
    scopes: tuple[str, ...] | None = None
    """What the host allowed the token to do. None: not known."""
    auth_id: str | None = None
    """The user's id at the host. None: ``user_id``."""
    auth_name: str | None = None
    """The user's name at the host, for people."""


class Client:
    """Asks tokenkeeper's workers, over one connection that comes back by itself. Any number of requests may be in flight.

    ``prefix`` and ``partitioned`` are the workers' ``broker.prefix``, and whether to publish to their partitions. Tokens come
    sealed unless ``sealed=False``. With ``store_key`` (and ``store_key_id``), as ``tokenkeeper keys public --json`` prints them,
    logins are sealed too. ``timeout`` is how many seconds a request takes at most, retries included: 0.001 to 86400.
    ``publisher`` is the AMQP property ``user_id``: by default the URL's user, and ``""`` leaves it out. ``plain_text`` lets
    ``amqp://`` go to another machine. Raises `ValueError` where one of them cannot work.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "tokenkeeper",
        partitioned: bool = False,
        sealed: bool = True,
        store_key: str | None = None,
        store_key_id: str | None = None,
        timeout: float = 30,
        publisher: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        plain_text: bool = False,
    ) -> None:
        try:
            self._url = URL(url)
        except ValueError:
            raise ValueError("the URL of the broker cannot be read") from None
        if self._url.scheme not in ("amqp", "amqps"):
            raise ValueError("the URL of the broker must begin with amqp:// or amqps://")
        if self._url.scheme == "amqp" and not plain_text and not _is_here(self._url.host or ""):
            raise ValueError("amqp:// to another machine shows the password: use amqps://, or plain_text")
        self._prefix, self._partitioned, self._sealed = prefix, partitioned, sealed
        self._store_key = None if store_key is None else public_key(store_key)
        self._store_key_id = store_key_id
        self._timeout = _checked(timeout)
        self._publisher = (self._url.user or "guest") if publisher is None else publisher
        self._ssl_context = ssl_context
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._trouble = "it is not there yet"
        self._closed = asyncio.Event()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def token(
        self,
        user_id: str,
        host: str,
        lifetime: int | None = None,
        *,
        timeout: float | None = None,
        traceparent: str | None = None,
    ) -> Token:
        """A token that works for so many seconds: 300, if it is left out."""
        request: wire.TokenRequest = {"user_id": user_id, "host": host}
        if lifetime is not None:
            request["requested_lifetime_secs"] = lifetime

        def read(reply: Body, key: ReplyKey | None) -> Token:
            return _replies.token(_replies.granted(reply, user_id, host), user_id, host, key)

        return await self._ask("token.request", request, read, timeout, traceparent)

    async def workspace_start(
        self,
        workspace_id: str,
        user_id: str,
        repositories: list[str],
        lifetime: int | None = None,
        *,
        timeout: float | None = None,
        traceparent: str | None = None,
    ) -> list[Token | RefusedError]:
        """A token for each host of these clone URLs, in the order of first appearance; an error in place of one there is not."""
        request: wire.WorkspaceStart = {
            "workspace_id": workspace_id,
            "user_id": user_id,
            "repositories": repositories,
        }
        if lifetime is not None:
            request["requested_lifetime_secs"] = lifetime
        last: list[Token | RefusedError] = []

        def read(reply: Body, key: ReplyKey | None) -> list[Token | RefusedError]:
            last[:] = _replies.workspace(reply, workspace_id, user_id, key)
            for element in last:
                if isinstance(element, RefusedError) and element.retryable:
                    raise element
            return last

        try:
            return await self._ask("workspace.start", request, read, timeout, traceparent)
        except TokenkeeperError as error:
            # The time for retries is over: some tokens are better than none.
            if not last or not error.retryable:
                raise
            return last

    async def store(
        self, login: Login, *, timeout: float | None = None, traceparent: str | None = None
    ) -> None:
        """Hands over a pair. tokenkeeper owns it from then on. Sealed, if the client has a ``store_key``."""
        message = _store_body(login)
        if self._store_key is not None:
            sealed = seal(self._store_key, message)
            message = {"user_id": login.user_id, "host": login.host, "sealed": sealed}
            if self._store_key_id is not None:
                message["key_id"] = self._store_key_id

        def read(reply: Body, _: ReplyKey | None) -> None:
            _replies.granted(reply, login.user_id, login.host)

        await self._ask("token.store", message, read, timeout, traceparent)

    async def report(
        self,
        user_id: str,
        host: str,
        token: str,
        *,
        timeout: float | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Says that the host rejected this token; only its digest is sent. Returns what came of it, as the contract has it."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        message: wire.TokenReport = {"user_id": user_id, "host": host, "token_sha256": digest}

        def read(reply: Body, _: ReplyKey | None) -> str:
            return _replies.text(_replies.granted(reply, user_id, host), "result")

        return await self._ask("token.report", message, read, timeout, traceparent)

    async def events(self, *patterns: str) -> AsyncGenerator[wire.Event, None]:
        """The events whose names match one of these patterns (all of them), from now on until the client is closed.

        What is published while there is no connection is missed: events are news, and replies are the truth.
        """
        seen: deque[str] = deque(maxlen=1000)
        pauses = _pauses()
        while not self._closed.is_set():
            with suppress(LinkLost, ClosedError):
                link = await self._connected()
                async with link.listen(f"{self._prefix}.events", patterns or ("#",)) as heard:
                    pauses = _pauses()
                    while (message := await heard.get()) is not None:
                        # Where the channel has closed meanwhile, the list ends.
                        with suppress(Exception):
                            await message.ack()
                        event = _replies.event(message.body)
                        if event is not None and message.message_id not in seen:
                            seen.append(message.message_id or "")
                            yield event
            await self._pause(next(pauses))

    async def close(self) -> None:
        """Closes the connection. What is in flight fails with `ClosedError`."""
        self._closed.set()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            await self._link.close()

    # --- Asking, within the deadline ---

    async def _ask(
        self,
        kind: str,
        request: Body,
        read: Callable[[Body, ReplyKey | None], T],
        timeout: float | None,
        traceparent: str | None,
    ) -> T:
        loop = asyncio.get_running_loop()
        seconds = self._timeout if timeout is None else _checked(timeout)
        deadline, pauses = loop.time() + seconds, _pauses()
        while True:
            key = ReplyKey() if self._sealed and kind in _READS else None
            body = request if key is None else {**request, "reply_public_key": key.public}
            try:
                reply = await self._attempt(kind, body, deadline, traceparent, seconds)
                return read(_replies.parse(reply), key)
            except LinkLost as lost:
                if self._closed.is_set():
                    raise ClosedError() from None
                if lost.sent and kind not in _READS:
                    raise ConnectionLostError(
                        f"the connection broke while a {kind} was under way"
                    ) from None
                pause, error = next(pauses), None
            except (RefusedError, BrokerRefusedError) as refused:
                pause, error = next(pauses) + (refused.retry_after or 0), refused
                if not refused.retryable:
                    raise
            if error is not None and loop.time() + pause >= deadline:
                raise error
            await self._pause(min(pause, max(0, deadline - loop.time())))

    async def _attempt(
        self, kind: str, body: Body, deadline: float, traceparent: str | None, seconds: float
    ) -> bytes:
        # First, so that what breaks the contract is refused without a connection too.
        encoded = _encoded(kind, body)
        is_connected = False
        try:
            async with asyncio.timeout_at(deadline):
                link = await self._connected()
                is_connected = True
                exchange, routing_key = self._route(kind, str(body["user_id"]))
                return await link.ask(
                    exchange, routing_key, lambda: self._message(encoded, deadline, traceparent)
                )
        except TimeoutError:
            if is_connected:
                raise NoReplyError(seconds) from None
            raise ConnectionLostError(
                f"no connection to the broker within {seconds:g} s: {self._trouble}"
            ) from None

    def _route(self, kind: str, user_id: str) -> tuple[str, str]:
        hashed = _HASH_EXCHANGES.get(kind) if self._partitioned else None
        # A routing key takes 255 bytes. A longer user goes where everybody may go.
        if hashed is not None and len(user_id.encode()) <= 255:
            return f"{self._prefix}.{hashed}", user_id
        return self._prefix, kind

    def _message(self, encoded: bytes, deadline: float, traceparent: str | None) -> aio_pika.Message:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise TimeoutError
        # Malformed, it is left out, as W3C's Trace Context says.
        traced = traceparent is not None and _TRACEPARENT.fullmatch(traceparent)
        return aio_pika.Message(
            encoded,
            content_type="application/json",
            reply_to=DIRECT_REPLY_TO,
            correlation_id=uuid.uuid4().hex,
            # A little less than there is, so that the worker's last word still comes in time.
            expiration=max(0.001, left - min(0.5, left / 4)),
            user_id=self._publisher or None,
            headers={"traceparent": traceparent} if traced else None,
        )

    async def _pause(self, seconds: float) -> None:
        # A client that is closed meanwhile does not keep anybody waiting.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)

    # --- The connection ---

    async def _connected(self) -> Link:
        if self._closed.is_set():
            raise ClosedError()
        if self._link is not None and not self._link.lost.is_set():
            return self._link
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
            # Those who wait for it may all be gone when it fails.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await shared(self._connecting)

    async def _connect(self) -> Link:
        for pause in _pauses():
            try:
                link = await Link.open(self._url, self._ssl_context)
            except Exception as trouble:
                self._trouble = words(trouble)
                # Once it was let in, a refusal may be a broker that is starting.
                if self._link is None and is_refusal(trouble):
                    raise BrokerRefusedError(self._trouble) from None
            else:
                self._link = link
                return link
            await asyncio.sleep(pause)
        raise AssertionError("pauses do not end")


def _is_here(host: str) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None


def _pauses() -> Iterator[float]:
    """How long to wait before the next try, in seconds: longer each time, and never the same for many at once."""
    pause = 0.1
    while True:
        yield pause * random.uniform(0.75, 1.25)
        pause = min(pause * 2, 5)


def _checked(timeout: float) -> float:
    # Also false of what is not a number.
    if not _SHORTEST_SECS <= timeout <= _LONGEST_SECS:
        raise ValueError(f"a timeout must be from {_SHORTEST_SECS:g} s to {_LONGEST_SECS} s")
    return timeout


def _encoded(kind: str, body: Body) -> bytes:
    """The body as it is sent. Raises `RefusedError` where the contract does not allow it."""
    most = 128 if kind == "token.store" else 64
    try:
        encoded = json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RefusedError("invalid_request", "not sent: a text is not Unicode") from None
    if len(encoded) > most * 1024:
        raise RefusedError("invalid_request", f"not sent: a {kind} is at most {most} KiB")
    return encoded


def _store_body(login: Login) -> dict[str, object]:
    fields = {"value": login.value, "refresh_token": login.refresh_token, "username": login.username,
              "scopes": login.scopes, "expires_at": _rfc3339(login.expires_at),
              "refresh_token_expires_at": _rfc3339(login.refresh_token_expires_at)}
    body = {"user_id": login.user_id, "host": login.host, "auth_id": login.auth_id,
            "auth_name": login.auth_name, "token": _given(fields)}
    return _given(body)


def _given(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _rfc3339(date: datetime | None) -> str | None:
    if date is None:
        return None
    if date.tzinfo is None:
        raise ValueError("a date needs a time zone")
    return date.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
