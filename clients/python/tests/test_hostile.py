"""What comes from outside may be anything: it breaks nobody's request but the one that it answers."""

from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from nacl.public import PrivateKey, PublicKey, SealedBox

from tokenkeeper_client import BadReplyError, Login, NotSealedError, RefusedError, Token

from .support import Body, WithScriptedWorker, granted, refused

HOST = "git.example.org"


def without(body: Body, *path: str) -> Body:
    copy: Body = json.loads(json.dumps(body))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return copy


def with_value(body: Body, value: Any, *path: str) -> Body:
    copy: Body = json.loads(json.dumps(body))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return copy


OK = granted("u-1", HOST)
NO_REPLIES: dict[str, Body | bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": json.dumps(granted("no UTF-8", HOST)).encode().replace(b'"repo"', b'"\xff"'),
    "no object": b'["ok"]',
    "a number of many digits": b"1" * 100_000,
    "deep": b'{"status":' * 200_000,
    "huge": {**OK, "padding": "x" * (5 * 1024 * 1024)},
    "no status": without(OK, "status"),
    "an unknown status": with_value(OK, "perhaps", "status"),
    "a status that is no text": with_value(OK, {"ok": True}, "status"),
    "another user": with_value(OK, "u-2", "user_id"),
    "another host": with_value(OK, "evil.example", "host"),
    "an error about another user": {**refused("internal"), "user_id": "u-2"},
    "an error about another host": {**refused("internal"), "host": "evil.example"},
    "an error about a user that is no text": {**refused("internal"), "user_id": ["s3cret"]},
    "no token": without(OK, "token"),
    "a token that is no object": with_value(OK, "s3cret", "token"),
    "a value that is no text": with_value(OK, 7, "token", "value"),
    "no userinfo": without(OK, "token", "userinfo"),
    "scopes that are no list": with_value(OK, "repo", "token", "scopes"),
    "a malformed date": with_value(OK, "s3cret", "token", "reserved_until"),
    "a date without a zone": with_value(OK, "2020-01-01", "token", "reserved_until"),
    "no error": {"status": "error"},
    "an error that is a text": {"status": "error", "error": "s3cret"},
    "a malformed code": refused("Ünknown code\n"),
    "an error without a message": {"status": "error", "error": {"code": "internal"}},
}


class Hostile(WithScriptedWorker):
    async def test_what_is_no_reply_is_an_error_for_one_request_and_others_are_served(self) -> None:
        async def rule(body: Body, _: object) -> Body | bytes:
            reply = NO_REPLIES.get(body["user_id"], OK)
            # Wrong in no other way than its name says.
            if isinstance(reply, dict) and reply.get("user_id") == "u-1":
                reply = {**reply, "user_id": body["user_id"]}
            return reply

        self.worker.rule = rule
        names = list(NO_REPLIES)
        hostile = [self.client.token(name, HOST) for name in names]
        bystanders = [self.client.token(f"u-{n}", HOST) for n in range(100)]
        ended = await asyncio.gather(*hostile, *bystanders, return_exceptions=True)
        for name, error in zip(names, ended, strict=False):
            with self.subTest(name):
                self.assertIsInstance(error, BadReplyError)
                self.assertNotIn("s3cret", f"{error!r}")
        self.assertTrue(all(isinstance(it, Token) for it in ended[len(names) :]))
        self.assertEqual(len({message.reply_to for message in self.worker.messages}), 1)

    async def test_a_well_formed_error_of_another_kind_is_taken_as_it_is(self) -> None:
        async def rule(*_: object) -> Body:
            return refused("a_newer_code", retry_after_secs=10**400, message="a\r\n\x1b[2Jb")

        self.worker.rule = rule
        with self.assertRaises(RefusedError) as raised:
            await self.client.token("u-1", HOST)
        self.assertEqual((raised.exception.code, raised.exception.retry_after), ("a_newer_code", None))
        self.assertTrue(str(raised.exception).isprintable())

    async def test_the_words_of_an_error_are_cut_and_printable_and_null_is_no_word(self) -> None:
        words = "a\r\n\x1b[2Jb" + "x" * 100_000
        failed = {**refused("unknown_host", reason=words, message=words), "user_id": "u-1", "host": words}
        silent = {**refused("internal", reason=None), "user_id": None, "host": None}
        reply = {"status": "error", "workspace_id": "ws-1", "user_id": "u-1", "tokens": [failed, silent]}
        self.worker.rule = _always(reply)
        first, second = await self.client.workspace_start("ws-1", "u-1", ["…"])
        assert isinstance(first, RefusedError) and isinstance(second, RefusedError)
        for text in (first.reason, first.host, first.message):
            assert text is not None
            self.assertTrue(text.isprintable() and len(text) == 500, text)
        self.assertEqual((second.reason, second.host), (None, None))
        self.worker.rule = _always(silent)
        with self.assertRaises(RefusedError) as raised:
            await self.client.token("u-1", HOST)
        self.assertEqual((raised.exception.reason, raised.exception.host), (None, None))

    async def test_an_error_of_a_login_or_a_report_is_about_the_one_that_was_sent(self) -> None:
        for about in ({"user_id": "u-2", "host": HOST}, {"user_id": "u-1", "host": "evil.example"}):
            self.worker.rule = _always({**refused("user_not_found"), **about})
            with self.subTest(about), self.assertRaises(BadReplyError):
                await self.client.store(Login("u-1", HOST, "s3cret"))
            with self.subTest(about), self.assertRaises(BadReplyError):
                await self.client.report("u-1", HOST, "s3cret")
        self.worker.rule = _always({**refused("user_not_found"), "user_id": "u-1", "host": HOST})
        with self.assertRaises(RefusedError):
            await self.client.store(Login("u-1", HOST, "s3cret"))

    async def test_a_reply_with_another_correlation_id_answers_nobody(self) -> None:
        async def rule(body: Body, message: Any) -> Body:
            for wrong in (" ", "0" * 32, "x" * 255):
                await self.worker.reply(message, granted("u-1", HOST, "forged"), to=wrong)
            return granted("u-1", HOST, "genuine")

        self.worker.rule = rule
        self.assertEqual((await self.client.token("u-1", HOST)).value, "genuine")

    async def test_only_the_first_of_two_replies_counts(self) -> None:
        async def rule(body: Body, message: Any) -> Body:
            await self.worker.reply(message, granted(body["user_id"], HOST, "first"))
            return granted(body["user_id"], HOST, "second")

        self.worker.rule = rule
        tokens = await asyncio.gather(*(self.client.token(f"u-{n}", HOST) for n in range(50)))
        self.assertEqual({token.value for token in tokens}, {"first"})

    async def test_workspaces_and_reports_are_read_as_carefully(self) -> None:
        tokens = [granted("u-1", HOST)]
        ok = {"status": "ok", "workspace_id": "ws-1", "user_id": "u-1", "tokens": tokens}
        for reply in (
            with_value(ok, [], "tokens"),
            with_value(ok, "s3cret", "tokens"),
            with_value(ok, ["s3cret"], "tokens"),
            with_value(ok, [granted("u-2", HOST)], "tokens"),
            with_value(ok, "ws-2", "workspace_id"),
            with_value(ok, [refused("identity_not_found")], "tokens"),
            with_value(ok, "error", "status"),
            {**ok, "status": "error", "tokens": [tokens[0], {**refused("internal"), "user_id": "u-2"}]},
            {**refused("internal"), "workspace_id": "ws-2"},
            {**refused("internal"), "user_id": "u-2"},
        ):
            with self.subTest(reply):
                self.worker.rule = _always(reply)
                with self.assertRaises(BadReplyError):
                    await self.client.workspace_start("ws-1", "u-1", [f"https://{HOST}/r"])
        self.worker.rule = _always({"status": "ok", "result": ["s3cret"]})
        with self.assertRaises(BadReplyError):
            await self.client.report("u-1", HOST, "s3cret")

    async def test_a_malformed_or_unknown_event_is_passed_over(self) -> None:
        good = {"event": "provider.recovered", "host": HOST, "at": "2020-01-01T01:00:00.000Z"}
        bad: list[Body | bytes] = [b"{", b"[]", b"{}", {**good, "event": "of.tomorrow"}, without(good, "host"),
                                   {**good, "event": "of.tomorrow", "an event of tomorrow": True},
                                   with_value(good, 7, "at"), {**good, "event": "token.refreshed"}]
        async with aclosing(self.client.events()) as events:
            heard = asyncio.create_task(first(events))
            # Nobody says when the queue is bound, and an event before is missed.
            early = {**good, "host": "early.example.org"}
            while not heard.done():
                await self.worker.event(early)
            for body in [*bad, good]:
                await self.worker.event(body)
            event = await heard
            while event == early:
                event = await first(events)
        self.assertEqual(event, good)


class Sealed(WithScriptedWorker):
    """Sealed replies and logins, with a worker that does them wrong."""

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.deployment = PrivateKey.generate()
        public_key = b64encode(bytes(self.deployment.public_key)).decode()
        self.sealing = self.another_client(sealed=True, store_key=public_key, store_key_id="k-1")

    async def test_a_sealed_token_is_opened_and_each_request_has_a_key_of_its_own(self) -> None:
        async def rule(body: Body, _: object) -> Body:
            return sealed(body, {"user_id": "u-1", "host": HOST, "value": "s3cret", "userinfo": "x:s3cret"})

        self.worker.rule = rule
        tokens = await asyncio.gather(*(self.sealing.token("u-1", HOST) for _ in range(3)))
        self.assertEqual({token.value for token in tokens}, {"s3cret"})
        self.assertEqual(len({json.loads(it.body)["reply_public_key"] for it in self.worker.messages}), 3)

    async def test_a_token_in_clear_is_refused_where_a_sealed_one_was_asked_for(self) -> None:
        self.worker.rule = _always(granted("u-1", HOST, "s3cret"))
        with self.assertRaises(NotSealedError) as raised:
            await self.sealing.token("u-1", HOST)
        self.assertNotIn("s3cret", f"{raised.exception!r}")
        reply = {"status": "ok", "workspace_id": "ws-1", "user_id": "u-1", "tokens": [granted("u-1", HOST)]}
        self.worker.rule = _always(reply)
        with self.assertRaises(NotSealedError):
            await self.sealing.workspace_start("ws-1", "u-1", [f"https://{HOST}/r"])

    async def test_a_box_with_something_else_in_it_is_refused(self) -> None:
        good = {"user_id": "u-1", "host": HOST, "value": "s3cret", "userinfo": "x:s3cret"}
        contents: list[Any] = [
            {**good, "user_id": "u-2"},
            {**good, "host": "evil.example"},
            without(good, "value"),
            {**good, "userinfo": 7},
            "s3cret",
            None,
        ]
        for content in contents:
            with self.subTest(content):

                async def rule(body: Body, _: object, content: Any = content) -> Body:
                    return sealed(body, content)

                self.worker.rule = rule
                with self.assertRaises(BadReplyError) as raised:
                    await self.sealing.token("u-1", HOST)
                self.assertNotIn("s3cret", f"{raised.exception!r}")

    async def test_a_box_that_does_not_open_is_refused(self) -> None:
        other = b64encode(bytes(PrivateKey.generate().public_key)).decode()
        for box in (seal_to(other, "{}"), "", "no base64 ü", "AAAA"):
            body = without(without(granted("u-1", HOST), "token", "value"), "token", "userinfo")
            self.worker.rule = _always(with_value(body, box, "token", "sealed"))
            with self.subTest(box), self.assertRaises(BadReplyError):
                await self.sealing.token("u-1", HOST)

    async def test_a_sealed_login_shows_the_broker_nothing_but_user_and_host(self) -> None:
        self.worker.rule = _always({"status": "ok"})
        await self.sealing.store(Login("u-1", HOST, "s3cret", refresh_token="s3cret-refresh", auth_id="jdoe"))
        message = json.loads(self.worker.messages[0].body)
        box = message.pop("sealed")
        self.assertEqual(message, {"user_id": "u-1", "host": HOST, "key_id": "k-1"})
        self.assertEqual(
            json.loads(SealedBox(self.deployment).decrypt(b64decode(box))),
            {"user_id": "u-1", "host": HOST, "auth_id": "jdoe",
             "token": {"value": "s3cret", "refresh_token": "s3cret-refresh"}},
        )

    async def test_an_invalid_key_is_refused_before_anything_is_sent(self) -> None:
        # Everybody could open what is sealed to these two, if it could be.
        low_order = [b64encode(bytes([first, *[0] * 31])).decode() for first in (0, 1)]
        for key in ("", "AAAA", "no base64 ü", *low_order):
            with self.subTest(key), self.assertRaisesRegex(ValueError, "the public key"):
                self.another_client(store_key=key)

    async def test_nothing_that_is_logged_holds_a_secret(self) -> None:
        self.worker.rule = _always(granted("u-1", HOST, "s3cret"))
        for library in (logging.getLogger(name) for name in ("aiormq", "aio_pika")):
            self.addCleanup(library.setLevel, library.level)
            library.setLevel(logging.DEBUG)
        with self.assertLogs(level=logging.DEBUG) as logs:
            with self.assertRaises(NotSealedError):
                await self.another_client(sealed=True).token("u-1", HOST)
            await self.client.token("u-1", HOST)
            await self.client.store(Login("u-1", HOST, "s3cret"))
        self.assertTrue(logs.output)
        self.assertEqual([line for line in logs.output if "s3cret" in line], [])


async def first(events: AsyncIterator[Any]) -> Any:
    return await anext(events)


def seal_to(public_key: str, content: str) -> str:
    return b64encode(SealedBox(PublicKey(b64decode(public_key))).encrypt(content.encode())).decode()


def sealed(request: Body, content: Any) -> Body:
    """An ok reply with this content in its box."""
    body = without(without(granted(request["user_id"], request["host"]), "token", "value"), "token", "userinfo")
    return with_value(body, seal_to(request["reply_public_key"], json.dumps(content)), "token", "sealed")


def _always(reply: Body) -> Any:
    async def rule(*_: object) -> Body:
        return reply

    return rule
