"""The client with a live worker and a simulated source-code host. `TOKENKEEPER_WORLD` says where they are."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing
from datetime import datetime
from typing import Any
from unittest import IsolatedAsyncioTestCase, skipUnless

from tokenkeeper_client import Client, Login, RefusedError, Token, UnroutableError

WORLD: dict[str, Any] = json.loads(os.environ.get("TOKENKEEPER_WORLD", "{}"))


def login(user: str) -> Login:
    """The pair that the host has issued to this user."""
    body = WORLD["logins"][user]
    token = body["token"]
    return Login(
        user_id=user,
        host=WORLD["host"],
        value=token["value"],
        refresh_token=token.get("refresh_token"),
        expires_at=datetime.fromisoformat(token["expires_at"]),
        username=token["username"],
        scopes=tuple(token["scopes"]),
        auth_id=body["auth_id"],
    )


@skipUnless(WORLD, "TOKENKEEPER_WORLD is not set: scripts/clients.sh runs this with a live worker")
class Live(IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)
        self.client = self.another_client(store_key=WORLD["public_key"], store_key_id=WORLD["key_id"])

    def another_client(self, **options: Any) -> Client:
        client = Client(WORLD["amqp_url"], **{"prefix": WORLD["prefix"], **options})
        self.addAsyncCleanup(client.close)
        return client

    async def asked(self, user: str, lifetime: int | None = None) -> Token:
        return await self.client.token(user, WORLD["host"], lifetime)

    async def refused(self, user: str, lifetime: int | None = None, host: str | None = None) -> str:
        with self.assertRaises(RefusedError) as raised:
            await self.client.token(user, host or WORLD["host"], lifetime)
        return raised.exception.code

    async def test_a_login_is_stored_and_handed_out_sealed_and_in_clear(self) -> None:
        clear = self.another_client(sealed=False)
        for client, user in ((self.client, "sealed"), (clear, "clear")):
            await client.store(login(user))
            for other in (self.client, clear):
                token = await other.token(user, WORLD["host"], 600)
                self.assertEqual((token.value, token.refresh), (login(user).value, "none"))
                self.assertTrue(token.userinfo.startswith("x-access-token:"))

    async def test_each_refusal_has_the_code_of_the_contract(self) -> None:
        await self.client.store(login("short"))
        self.assertEqual(await self.refused("nobody"), "user_not_found")
        self.assertEqual(await self.refused("short", host="git.example.org"), "unknown_host")
        self.assertEqual(await self.refused("short", 86_401), "invalid_request")
        self.assertEqual(await self.refused("short", 86_400), "not_refreshable")

    async def test_a_refresh_is_an_event(self) -> None:
        async with aclosing(self.client.events("token.refreshed")) as events:

            async def first() -> Any:
                return await anext(events)

            heard = asyncio.create_task(first())
            # Nobody says when the queue is bound, and a refresh before is missed.
            for number in range(20):
                await self.client.store(login(f"expired-{number}"))
                self.assertEqual((await self.asked(f"expired-{number}")).refresh, "required")
                if (await asyncio.wait([heard], timeout=0.3))[0]:
                    break
            event = await asyncio.wait_for(heard, 10)
        self.assertEqual((event["event"], event["host"]), ("token.refreshed", WORLD["host"]))
        self.assertTrue(event["user_id"].startswith("expired-"))

    async def test_a_report_says_what_came_of_it(self) -> None:
        await self.client.store(login("reported"))
        token = await self.asked("reported", 600)
        self.assertEqual(await self.client.report("reported", WORLD["host"], "another"), "not_current")
        self.assertEqual(await self.client.report("reported", WORLD["host"], token.value), "held")

    async def test_a_workspace_gets_what_there_is(self) -> None:
        await self.client.store(login("workspace"))
        repositories = [f"https://{WORLD['host']}/scm/p/r.git", "https://git.example.org/scm/p/r.git"]
        there, missing = await self.client.workspace_start("ws-1", "workspace", repositories, 600)
        assert isinstance(there, Token) and isinstance(missing, RefusedError)
        self.assertEqual((there.value, there.host), (login("workspace").value, WORLD["host"]))
        self.assertEqual((missing.code, missing.host), ("unknown_host", "git.example.org"))

    async def test_partitions_are_another_way_to_the_same_answer(self) -> None:
        client = self.another_client(partitioned=True)
        await client.store(login("partitioned"))
        token = await client.token("partitioned", WORLD["host"], 600)
        self.assertEqual(token.value, login("partitioned").value)

    async def test_five_hundred_requests_get_their_sealed_tokens(self) -> None:
        await self.client.store(login("busy"))
        tokens = await asyncio.gather(*(self.asked("busy", 60) for _ in range(500)))
        self.assertEqual({token.value for token in tokens}, {login("busy").value})

    async def test_where_no_worker_ever_was_a_request_is_unroutable(self) -> None:
        client = self.another_client(prefix=f"{WORLD['prefix']}-nobody")
        with self.assertRaises(UnroutableError):
            await client.token("u-1", WORLD["host"])
