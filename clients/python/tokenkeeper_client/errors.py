"""What can go wrong, each with a ``code`` for the program and a word on whether to ask again."""

from __future__ import annotations


class TokenkeeperError(Exception):
    """Why there is no answer, or not the one that was wanted. No error holds a secret.

    ``code`` is one of the contract's where the worker refused, else one of this client's: each class below names its own.
    ``retryable`` says whether the same request may succeed later, and ``retry_after`` after how many seconds, where that is
    known. The client has asked again by itself for as long as the request's time allowed.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


class RefusedError(TokenkeeperError):
    """The worker's own answer: ``code`` is one of the contract's error codes.

    ``reason`` says more about ``reauthorization_required``. In a workspace's answer ``host`` is the host without a token. Both
    are what somebody else wrote, cut and without what is not printable.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        reason: str | None = None,
        host: str | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable, retry_after=retry_after)
        self.reason = reason
        self.host = host


class UnroutableError(TokenkeeperError):
    """No queue takes the message: no worker has ever declared it, or ``prefix`` or ``partitioned`` is wrong."""

    def __init__(self, exchange: str, routing_key: str) -> None:
        super().__init__(
            "unroutable",
            f"no worker has declared the queue behind exchange {exchange!r} for {plain(routing_key)}",
        )


class NoReplyError(TokenkeeperError):
    """The broker was there, and the request's time ran out before a reply came."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "no_reply", f"no reply came within {seconds:g} s; check that a worker is running", retryable=True
        )


class ConnectionLostError(TokenkeeperError):
    """There was no connection to the broker in time; or a ``store`` or ``report`` was under way when it broke.

    Then nobody knows whether the message arrived. It does no harm to send it again, unless a later login was stored since.
    """

    def __init__(self, message: str) -> None:
        super().__init__("connection_lost", message, retryable=True)


class BrokerRefusedError(TokenkeeperError):
    """The broker does not let this user connect or publish, or could not take the message (then ``retryable``)."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__("broker_refused", message, retryable=retryable)


class BadReplyError(TokenkeeperError):
    """The reply is malformed, or about another user or host. It is not shown, because it may hold a token."""

    def __init__(self, message: str, *, code: str = "bad_reply") -> None:
        super().__init__(code, message)


class NotSealedError(BadReplyError):
    """A sealed token was asked for, and one in clear came. It is thrown away: the broker has seen it."""

    def __init__(self) -> None:
        super().__init__(
            "a sealed token was asked for, and one in clear came: the worker is older than sealed replies",
            code="not_sealed",
        )


class ClosedError(TokenkeeperError):
    """The client was closed before the reply came."""

    def __init__(self) -> None:
        super().__init__("closed", "the client is closed")


def plain(said: str, most: int = 300) -> str:
    """What the broker, the system or a worker says, as one line of printable characters."""
    return "".join(sign if sign.isprintable() else " " for sign in said[:most])
