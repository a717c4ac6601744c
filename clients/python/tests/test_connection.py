"""A connection that breaks, at any time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from unittest.mock import patch

from aio_pika.abc import AbstractIncomingMessage

from tokenkeeper_client import ClosedError, ConnectionLostError, Login, NoReplyError, RefusedError, Token, _link

from .support import Body, Wire, WithScriptedWorker, granted, refused

HOST = "git.example.org"


class Connection(WithScriptedWorker):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.wire = Wire()
        await self.wire.start()
        self.addAsyncCleanup(self.wire.stop)
        self.wired = self.another_client(self.wire.url())

    async def test_reads_that_were_in_flight_are_asked_again(self) -> None:
        everybody, answer = asyncio.Event(), False

        async def rule(body: Body, _: object) -> Body | None:
            if len(self.worker.messages) == 100:
                everybody.set()
            return granted(body["user_id"], body["host"]) if answer else None

        self.worker.rule = rule
        asked = [asyncio.create_task(self.wired.token(f"u-{n}", HOST)) for n in range(100)]
        await everybody.wait()
        answer = True
        self.wire.cut()
        tokens = await asyncio.gather(*asked)
        self.assertEqual([token.user_id for token in tokens], [f"u-{n}" for n in range(100)])
        self.assertEqual((len(self.worker.messages), self.wire.connections), (200, 2))

    async def test_a_connection_that_breaks_again_and_again_costs_time_and_no_request(self) -> None:
        # Each connection has an address of its own for replies.
        arrived: Counter[str | None] = Counter()

        async def rule(body: Body, message: AbstractIncomingMessage) -> Body:
            arrived[message.reply_to] += 1
            if arrived[message.reply_to] == 50 and self.wire.connections <= 5:
                self.wire.cut()
            return granted(body["user_id"], body["host"])

        self.worker.rule = rule
        tokens = await asyncio.gather(*(self.wired.token(f"u-{n % 7}", HOST, timeout=60) for n in range(300)))
        self.assertTrue(all(isinstance(it, Token) for it in tokens))
        self.assertEqual(self.wire.connections, 6)

    async def test_a_connection_that_breaks_while_it_is_made_is_made_again(self) -> None:
        # The broker's part of the handshake takes some 650 bytes.
        for most in range(0, 760, 40):
            self.wire.cut_after = most
            client = self.another_client(self.wire.url())
            await client.token("u-1", HOST)
            await client.close()
        self.assertGreater(self.wire.connections, 25)

    async def test_a_login_that_was_in_flight_is_not_sent_twice(self) -> None:
        async def rule(*_: object) -> None:
            return None

        self.worker.rule = rule
        stored = asyncio.create_task(self.wired.store(Login("u-1", HOST, "s3cret")))
        await self.worker.arrived.wait()
        self.wire.cut()
        with self.assertRaises(ConnectionLostError) as raised:
            await stored
        self.assertTrue(raised.exception.retryable)
        self.assertNotIn("s3cret", f"{raised.exception!r}")
        self.assertEqual(len(self.worker.messages), 1)

    async def test_a_login_whose_confirm_does_not_come_is_not_sent_twice(self) -> None:
        await self.wired.token("u-1", HOST)
        self.worker.arrived.clear()
        self.wire.from_broker.clear()
        stored = asyncio.create_task(self.wired.store(Login("u-1", HOST, "s3cret")))
        await self.worker.arrived.wait()
        self.wire.cut()
        self.wire.from_broker.set()
        with self.assertRaises(ConnectionLostError):
            await stored
        self.assertEqual(len(self.worker.messages), 2)

    async def test_what_a_broker_does_not_take_is_bounded_and_goes_on_when_it_takes_it_again(self) -> None:
        with patch.object(_link, "UNCONFIRMED_MOST", 16):
            await self.wired.token("u-1", HOST)
        self.wire.to_broker.clear()
        asked = (self.wired.token(f"u-{n}", HOST, timeout=0.5) for n in range(100))
        ended = await asyncio.gather(*asked, return_exceptions=True)
        self.assertTrue(all(isinstance(it, NoReplyError) for it in ended), ended)
        self.wire.to_broker.set()
        await self.wired.token("u-1", HOST)
        # Nothing of the others was kept for later.
        self.assertLessEqual(len(self.worker.messages), 1 + 16 + 1)

    async def test_who_waits_for_a_turn_is_asked_over_the_next_connection(self) -> None:
        with patch.object(_link, "UNCONFIRMED_MOST", 16):
            await self.wired.token("u-1", HOST)
        self.wire.to_broker.clear()
        asked = [asyncio.create_task(self.wired.token(f"u-{n}", HOST)) for n in range(100)]
        link = self.wired._link
        assert link is not None
        while not link._room.locked():
            await asyncio.sleep(0)
        self.wire.cut()
        self.wire.to_broker.set()
        tokens = await asyncio.gather(*asked)
        self.assertEqual([token.user_id for token in tokens], [f"u-{n}" for n in range(100)])

    async def test_nobody_waits_for_a_pause_of_a_client_that_is_closed(self) -> None:
        async def rule(*_: object) -> Body:
            return refused("provider_unavailable", True, retry_after_secs=3600)

        self.worker.rule = rule
        asked = asyncio.create_task(self.wired.token("u-1", HOST, timeout=86_400))
        await self.worker.arrived.wait()
        # Its reply came before this one's, which has no time for the pause.
        with self.assertRaises(RefusedError):
            await self.wired.token("u-1", HOST, timeout=1)
        await self.wired.close()
        with self.assertRaises(ClosedError):
            await asyncio.wait_for(asked, 10)

    async def test_others_are_served_while_one_connection_is_down(self) -> None:
        await self.wired.token("u-1", HOST)
        self.wire.refuse()
        down = asyncio.create_task(self.wired.token("u-1", HOST, timeout=0.5))
        for _ in range(20):
            await self.client.token("u-2", HOST)
        with self.assertRaises(ConnectionLostError):
            await down
        self.wire.admit()
        await self.wired.token("u-1", HOST)

    async def test_events_come_again_after_a_break_and_never_twice(self) -> None:
        heard: list[Any] = []

        async def listen() -> None:
            async for event in self.wired.events("provider.*"):
                heard.append(event)

        listening = asyncio.create_task(listen())

        async def publish_until(count: int, number: int) -> None:
            while len(heard) < count:
                event = {"event": "provider.recovered", "host": f"h-{number}", "at": "2020-01-01T01:00:00.000Z"}
                for _ in range(2):
                    await self.worker.event(event, message_id=f"m-{number}")
                other = {**event, "event": "token.refreshed"}
                await self.worker.event(other)
                await asyncio.sleep(0.01)

        await publish_until(1, 1)
        self.wire.cut()
        await publish_until(2, 2)
        self.assertEqual([event["host"] for event in heard], ["h-1", "h-2"])
        await self.wired.close()
        await listening
