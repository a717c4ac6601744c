"""Requests and their answers, with a worker that answers as the test says."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime

from aio_pika.abc import AbstractIncomingMessage

from tokenkeeper_client import (
    BrokerRefusedError,
    Client,
    ClosedError,
    ConnectionLostError,
    Login,
    NoReplyError,
    RefusedError,
    Token,
    UnroutableError,
)
from tokenkeeper_client._link import can_mean

from .support import BROKER, Body, WithScriptedWorker, granted, refused

NO_BROKER = "amqp://127.0.0.1:1/"
CODES = {
    "invalid_request": False,
    "forbidden": False,
    "unknown_host": False,
    "user_not_found": False,
    "identity_not_found": False,
    "token_not_found": False,
    "not_refreshable": False,
    "reauthorization_required": False,
    "provider_misconfigured": False,
    "provider_unavailable": True,
    "refresh_timeout": True,
    "deadline_exceeded": True,
    "internal": True,
}


class Requests(WithScriptedWorker):
    async def test_a_token_is_asked_for_as_the_contract_says(self) -> None:
        traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
        token = await self.client.token("u-1", "git.example.org", 600, timeout=8, traceparent=traceparent)
        self.assertEqual((token.value, token.expires_at), ("s3cret-token", None))
        self.assertEqual(token.reserved_until, datetime.fromisoformat("2020-01-01T01:05:00Z"))
        message = self.worker.messages[0]
        self.assertEqual(
            json.loads(message.body),
            {"user_id": "u-1", "host": "git.example.org", "requested_lifetime_secs": 600},
        )
        self.assertEqual(message.headers["traceparent"], traceparent)
        self.assertEqual(message.user_id, BROKER.user or "guest")
        # In seconds here, in milliseconds on the wire: half a second less than the deadline, less the time to connect.
        self.assertTrue(3 < float(str(message.expiration)) <= 7.5, message.expiration)

    async def test_a_malformed_traceparent_is_left_out(self) -> None:
        await self.client.token("u-1", "git.example.org", traceparent="00-x" * 100_000)
        self.assertNotIn("traceparent", self.worker.messages[0].headers)

    async def test_each_error_code_is_an_error_that_says_whether_to_ask_again(self) -> None:
        async def rule(body: Body, _: object) -> Body:
            code = body["user_id"]
            # Later than the request's deadline, so that it is not asked again.
            return refused(code, CODES[code], **({"retry_after_secs": 60} if CODES[code] else {}))

        self.worker.rule = rule
        for code, retryable in CODES.items():
            with self.subTest(code), self.assertRaises(RefusedError) as raised:
                await self.client.token(code, "git.example.org")
            error = raised.exception
            self.assertEqual(
                (error.code, error.retryable, error.retry_after), (code, retryable, 60 if retryable else None)
            )
        self.assertEqual(len(self.worker.messages), len(CODES))

    async def test_a_retry_waits_as_long_as_the_worker_says(self) -> None:
        asked: list[float] = []

        async def rule(body: Body, _: object) -> Body:
            asked.append(time.monotonic())
            if len(asked) == 1:
                return refused("provider_unavailable", True, retry_after_secs=1)
            return granted(body["user_id"], body["host"])

        self.worker.rule = rule
        await self.client.token("u-1", "git.example.org")
        self.assertEqual(len(asked), 2)
        self.assertGreaterEqual(asked[1] - asked[0], 1)

    async def test_without_a_pause_from_the_worker_retries_come_within_the_deadline(self) -> None:
        async def rule(*_: object) -> Body:
            return refused("internal", True)

        self.worker.rule = rule
        began = time.monotonic()
        with self.assertRaises(RefusedError):
            await self.client.token("u-1", "git.example.org", timeout=1)
        self.assertLess(time.monotonic() - began, 3)
        self.assertGreater(len(self.worker.messages), 2)

    async def test_a_request_that_nobody_answers_ends_with_its_time_and_others_are_served(self) -> None:
        async def rule(body: Body, message: object) -> Body | None:
            return None if body["user_id"] == "silent" else granted(body["user_id"], body["host"])

        self.worker.rule = rule
        began = time.monotonic()
        silent = asyncio.create_task(self.client.token("silent", "git.example.org", timeout=0.7))
        for _ in range(20):
            await self.client.token("u-1", "git.example.org")
        with self.assertRaises(NoReplyError) as raised:
            await silent
        self.assertEqual((raised.exception.code, raised.exception.retryable), ("no_reply", True))
        self.assertLess(time.monotonic() - began, 8)

    async def test_a_message_without_a_queue_is_unroutable_and_others_are_served(self) -> None:
        for queue in self.worker._queues:
            if queue.name.endswith("token-reports"):
                await queue.unbind(self.worker.prefix, "token.report")
        with self.assertRaises(UnroutableError) as raised:
            await self.client.report("u-1", "git.example.org", "t")
        self.assertIn("no worker has declared the queue", str(raised.exception))
        self.assertEqual((await self.client.token("u-1", "git.example.org")).host, "git.example.org")

    async def test_a_message_that_a_full_queue_refuses_is_sent_again_in_its_time_and_others_are_served(self) -> None:
        full = await self.worker.channel.declare_queue(
            exclusive=True, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
        )
        await full.bind(self.worker.prefix, "token.report")

        async def rule(body: Body, message: AbstractIncomingMessage) -> Body | None:
            return None if message.routing_key == "token.report" else granted(body["user_id"], body["host"])

        # The other queue takes each.
        self.worker.rule = rule
        # The sixth try would be later than this in any case, and the fifth is over by then.
        with self.assertRaises(BrokerRefusedError) as raised:
            await self.client.report("u-1", "git.example.org", "t", timeout=4.5)
        self.assertTrue(raised.exception.retryable)
        self.assertGreater(len(self.worker.messages), 1)
        await self.client.token("u-1", "git.example.org")

    async def test_an_exchange_that_is_not_there_costs_nobody_else_the_channel(self) -> None:
        client = self.another_client(partitioned=True)
        in_flight = asyncio.Event()

        async def rule(body: Body, _: object) -> Body:
            await in_flight.wait()
            return {"status": "ok", "result": "held"}

        self.worker.rule = rule
        # Reports have no partitions, so this one is on its way while the others find no exchange.
        bystander = asyncio.create_task(client.report("u-1", "git.example.org", "t"))
        await self.worker.arrived.wait()
        with self.assertRaises(UnroutableError):
            await client.token("u-1", "git.example.org")
        in_flight.set()
        self.assertEqual(await bystander, "held")
        self.assertEqual(len(self.worker.messages), 1)

    async def test_an_exchange_that_is_gone_is_unroutable_as_one_that_never_was(self) -> None:
        await self.client.token("u-1", "git.example.org")
        exchange = await self.worker.channel.get_exchange(self.worker.prefix, ensure=False)
        await exchange.delete()
        for _ in range(2):
            with self.assertRaises(UnroutableError):
                await self.client.token("u-1", "git.example.org")

    def test_a_refusal_is_told_to_those_whom_the_broker_can_have_meant(self) -> None:
        for said, expected in (
            ("NOT_FOUND - no exchange 'tk' in vhost '/'", True),
            ("ACCESS_REFUSED - access to exchange 'tk' in vhost '/' refused for user 'u'", True),
            ("ACCESS_REFUSED - access to exchange 'tk.events' in vhost '/' refused for user 'tk'", False),
            ("PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'b'", True),
        ):
            self.assertEqual(can_mean(said, "tk"), expected, said)

    async def test_a_publisher_that_the_broker_does_not_know_is_refused(self) -> None:
        client = self.another_client(publisher="somebody-else")
        with self.assertRaises(BrokerRefusedError) as raised:
            await client.token("u-1", "git.example.org")
        self.assertFalse(raised.exception.retryable)

    async def test_a_refused_login_is_said_at_once_and_shows_no_password(self) -> None:
        client = self.another_client(str(BROKER.with_password("wr0ng-password")), timeout=30)
        began = time.monotonic()
        with self.assertRaises(BrokerRefusedError) as raised:
            await client.token("u-1", "git.example.org")
        self.assertLess(time.monotonic() - began, 10)
        self.assertNotIn("wr0ng-password", f"{raised.exception!r} {client!r}")

    async def test_a_malformed_url_or_one_that_shows_the_password_is_refused(self) -> None:
        for url in ("amqp://u:s3cret@broker.example.org/", "http://u:s3cret@127.0.0.1/", "amqp://u:s3cret@[::1/"):
            with self.assertRaises(ValueError) as raised:
                Client(url)
            self.assertNotIn("s3cret", f"{raised.exception!r}")
        Client("amqp://u:s3cret@broker.example.org/", plain_text=True)
        Client("amqps://u:s3cret@broker.example.org/")

    async def test_a_timeout_that_cannot_work_is_refused_before_anything_is_sent(self) -> None:
        for timeout in (0, -1, float("nan"), float("inf"), 86_401, 2**31):
            with self.subTest(timeout):
                with self.assertRaisesRegex(ValueError, "from 0.001 s to 86400 s"):
                    self.another_client(timeout=timeout)
                with self.assertRaisesRegex(ValueError, "from 0.001 s to 86400 s"):
                    await self.client.token("u-1", "git.example.org", timeout=timeout)
        await self.client.token("u-1", "git.example.org", timeout=86_400)
        self.assertEqual(len(self.worker.messages), 1)

    async def test_a_broker_that_is_not_there_costs_the_deadline_and_no_more(self) -> None:
        client = self.another_client(NO_BROKER, timeout=0.5)
        with self.assertRaises(ConnectionLostError):
            await client.token("u-1", "git.example.org")

    async def test_five_hundred_requests_are_in_flight_at_once_over_one_connection(self) -> None:
        everybody = asyncio.Event()

        async def rule(body: Body, _: object) -> Body:
            if len(self.worker.messages) == 500:
                everybody.set()
            await everybody.wait()
            return granted(body["user_id"], body["host"], f"token-of-{body['user_id']}")

        self.worker.rule = rule
        tokens = await asyncio.gather(*(self.client.token(f"u-{n}", "git.example.org") for n in range(500)))
        self.assertEqual([token.value for token in tokens], [f"token-of-u-{n}" for n in range(500)])
        self.assertEqual(len({message.reply_to for message in self.worker.messages}), 1)

    async def test_a_workspace_gets_a_token_for_each_host_or_why_there_is_none(self) -> None:
        async def rule(body: Body, _: object) -> Body:
            self.assertEqual(body["repositories"], ["https://a.example.org/r", "https://b.example.org/r"])
            there, missing = granted("u-1", "a.example.org"), {
                **refused("identity_not_found"), "user_id": "u-1", "host": "b.example.org"
            }
            return {"status": "error", "workspace_id": "ws-1", "user_id": "u-1", "tokens": [there, missing]}

        self.worker.rule = rule
        repositories = ["https://a.example.org/r", "https://b.example.org/r"]
        there, missing = await self.client.workspace_start("ws-1", "u-1", repositories)
        assert isinstance(there, Token) and isinstance(missing, RefusedError)
        self.assertEqual((there.host, missing.code, missing.host),
                         ("a.example.org", "identity_not_found", "b.example.org"))

    async def test_a_workspace_keeps_the_tokens_it_got_when_the_rest_stays_away(self) -> None:
        async def rule(body: Body, _: object) -> Body:
            away = {**refused("provider_unavailable", True), "user_id": "u-1", "host": "b.example.org"}
            tokens = [granted("u-1", "a.example.org"), away]
            return {"status": "error", "workspace_id": "ws-1", "user_id": "u-1", "tokens": tokens}

        self.worker.rule = rule
        there, away = await self.client.workspace_start("ws-1", "u-1", ["…"], timeout=1)
        assert isinstance(there, Token) and isinstance(away, RefusedError)
        self.assertGreater(len(self.worker.messages), 1)

    async def test_an_invalid_message_is_refused_with_a_broker_and_without(self) -> None:
        for client in (self.client, self.another_client(NO_BROKER, timeout=0.5)):
            for user_id in ("x" * 70_000, "u-\ud800"):
                with self.assertRaises(RefusedError) as raised:
                    await client.token(user_id, "git.example.org")
                self.assertEqual(raised.exception.code, "invalid_request")
        await self.client.token("u-1", "git.example.org")
        self.assertEqual(len(self.worker.messages), 1)

    async def test_a_client_that_is_closed_answers_everybody(self) -> None:
        async def rule(*_: object) -> None:
            return None

        self.worker.rule = rule
        asked = asyncio.create_task(self.client.token("u-1", "git.example.org"))
        await self.worker.arrived.wait()
        await self.client.close()
        with self.assertRaises(ClosedError):
            await asked
        with self.assertRaises(ClosedError):
            await self.client.token("u-1", "git.example.org")

    async def test_a_request_that_is_cancelled_leaves_the_others_alone(self) -> None:
        asked = [asyncio.create_task(self.client.token(f"u-{n}", "git.example.org")) for n in range(100)]
        await asyncio.sleep(0)
        for task in asked[::2]:
            task.cancel()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        self.assertTrue(all(isinstance(it, Token) for it in ended[1::2]), ended)

    async def test_no_text_form_shows_a_secret(self) -> None:
        token = await self.client.token("u-1", "git.example.org")
        login = Login("u-1", "git.example.org", "s3cret-token", refresh_token="s3cret-refresh")
        self.assertNotIn("s3cret", f"{token!r} {token} {login!r} {login}")
