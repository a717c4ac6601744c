"""Asks tokenkeeper for OAuth tokens over RabbitMQ. See README.md."""

from ._client import Client, Login
from ._replies import Token
from .errors import (
    BadReplyError,
    BrokerRefusedError,
    ClosedError,
    ConnectionLostError,
    NoReplyError,
    NotSealedError,
    RefusedError,
    TokenkeeperError,
    UnroutableError,
)

__all__ = [
    "BadReplyError",
    "BrokerRefusedError",
    "Client",
    "ClosedError",
    "ConnectionLostError",
    "Login",
    "NoReplyError",
    "NotSealedError",
    "RefusedError",
    "Token",
    "TokenkeeperError",
    "UnroutableError",
]
