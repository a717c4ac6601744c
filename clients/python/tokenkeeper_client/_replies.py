"""Reads replies and events. They come from outside, so that nothing in them is taken for granted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast, get_args, get_type_hints

from . import wire
from ._sealed import ReplyKey
from .errors import BadReplyError, NotSealedError, RefusedError, plain

# A workspace's sixteen tokens of 32 KiB, percent-encoded and sealed, take less.
MOST_BYTES = 4 * 1024 * 1024
_CODE = re.compile(r"[a-z_]{1,64}")
# How much of an error's words is kept, in characters.
_MOST_WORDS = 500
# The fields of each event, by its name.
_EVENTS: dict[str, frozenset[str]] = {
    get_args(get_type_hints(kind)["event"])[0]: kind.__required_keys__ for kind in get_args(wire.Event)
}


@dataclass(frozen=True)
class Token:
    """A token that works until ``reserved_until`` at least. Its text form shows no secret."""

    user_id: str
    host: str
    value: str = field(repr=False)
    userinfo: str = field(repr=False)
    """User name and value, percent-encoded for a clone URL: ``https://USERINFO@HOST/…``."""
    username: str
    """The user name for git, beside ``value``."""
    scopes: tuple[str, ...]
    updated_at: datetime
    """When the pair was stored or refreshed."""
    expires_at: datetime | None
    """None: it never expires."""
    reserved_until: datetime
    """Until then nobody refreshes it away."""
    refresh: str
    """What this request did: none, reserved, opportunistic or required."""
    warnings: tuple[str, ...]
    """The contract's words for what is not as it was asked for."""


def parse(body: bytes) -> Mapping[str, object]:
    """The object in a body."""
    if len(body) > MOST_BYTES:
        raise BadReplyError(f"the reply is over {MOST_BYTES} bytes")
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError):
        raise BadReplyError("the reply is not JSON") from None
    return _object(parsed, "the reply")


def succeeded(reply: Mapping[str, object]) -> bool:
    """Whether the status is `ok`; False where it is `error`."""
    status = reply.get("status")
    if status not in ("ok", "error"):
        raise BadReplyError("the reply has an unknown status")
    return status == "ok"


def granted(reply: Mapping[str, object], user_id: str, host: str) -> Mapping[str, object]:
    """The reply, where it is ok. Raises what the worker says where it is not."""
    _check(reply, user_id=user_id, host=host)
    if not succeeded(reply):
        raise _refusal(reply)
    return reply


def _check(reply: Mapping[str, object], **asked: str) -> None:
    """What a reply says of whom it is about must be right. An error may say nothing; so does an ok one to a login or a report."""
    for name, value in asked.items():
        if reply.get(name) not in (None, value):
            raise BadReplyError(f"the reply is about another {name.removesuffix('_id')}")


def _refusal(reply: Mapping[str, object]) -> RefusedError:
    error = _object(reply.get("error"), "error")
    code, message, after = text(error, "code"), text(error, "message"), error.get("retry_after_secs")
    if not _CODE.fullmatch(code):
        raise BadReplyError("error.code is malformed")
    known = isinstance(after, int) and not isinstance(after, bool) and 0 <= after <= 86400
    return RefusedError(
        code,
        plain(message, _MOST_WORDS),
        retryable=error.get("retryable") is True,
        retry_after=float(cast(int, after)) if known else None,
        reason=_optional_text(error, "reason"),
        host=_optional_text(reply, "host"),
    )


def token(reply: Mapping[str, object], user_id: str, host: str | None, key: ReplyKey | None) -> Token:
    """The token of an ok reply for this user, and this host where it is known; sealed to this key, if there is one."""
    if reply.get("user_id") != user_id or (host is not None and reply.get("host") != host):
        raise BadReplyError("the reply is about another user or host")
    host = text(reply, "host")
    granted = _object(reply.get("token"), "token")
    secret = granted
    if key is not None:
        if "value" in granted or "userinfo" in granted or "sealed" not in granted:
            raise NotSealedError()
        secret = _object(key.open(text(granted, "sealed")), "the sealed token")
        if secret.get("user_id") != user_id or secret.get("host") != host:
            raise BadReplyError("the sealed token is of another user or host")
    return Token(
        user_id=user_id,
        host=host,
        value=text(secret, "value"),
        userinfo=text(secret, "userinfo"),
        username=text(granted, "username"),
        scopes=_texts(granted, "scopes"),
        updated_at=_date(granted, "updated_at"),
        expires_at=None if granted.get("expires_at") is None else _date(granted, "expires_at"),
        reserved_until=_date(granted, "reserved_until"),
        refresh=text(reply, "refresh"),
        warnings=_texts(reply, "warnings"),
    )


def workspace(
    reply: Mapping[str, object], workspace_id: str, user_id: str, key: ReplyKey | None
) -> list[Token | RefusedError]:
    """One element for each host, as they came."""
    ok, elements = succeeded(reply), reply.get("tokens")
    _check(reply, workspace_id=workspace_id, user_id=user_id)
    if not ok and (reply.get("error") is not None or not elements):
        raise _refusal(reply)
    if reply.get("workspace_id") != workspace_id or reply.get("user_id") != user_id:
        raise BadReplyError("the reply is about another workspace or user")
    if not isinstance(elements, list) or not elements:
        raise BadReplyError("tokens is missing or not a list")
    parsed = [_object(element, "an element of tokens") for element in elements]
    for it in parsed:
        _check(it, user_id=user_id)
    read = [token(it, user_id, None, key) if succeeded(it) else _refusal(it) for it in parsed]
    if ok != all(isinstance(it, Token) for it in read):
        raise BadReplyError("the status of the reply is not that of its tokens")
    return read


def event(body: bytes) -> wire.Event | None:
    """The event in a body. None where it is malformed, or unknown to this version."""
    try:
        parsed = parse(body)
        required = _EVENTS.get(text(parsed, "event"))
        if required is None or not required <= parsed.keys():
            return None
        text(parsed, "host"), _date(parsed, "at")
    except BadReplyError:
        return None
    return cast(wire.Event, parsed)


def _object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise BadReplyError(f"{name} is missing or not an object")
    return value


def text(of: Mapping[str, object], name: str) -> str:
    value = of.get(name)
    if not isinstance(value, str):
        raise BadReplyError(f"{name} is missing or not a string")
    return value


def _optional_text(of: Mapping[str, object], name: str) -> str | None:
    return None if of.get(name) is None else plain(text(of, name), _MOST_WORDS)


def _texts(of: Mapping[str, object], name: str) -> tuple[str, ...]:
    values = of.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadReplyError(f"{name} is missing or not a list of strings")
    return tuple(values)


def _date(of: Mapping[str, object], name: str) -> datetime:
    value = of.get(name)
    try:
        date = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        date = None
    if date is None or date.tzinfo is None:
        raise BadReplyError(f"{name} is missing or not RFC 3339")
    return date
