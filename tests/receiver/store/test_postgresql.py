"""Behaviour of PostgreSQL alone: lost connections, notifications between processes, and refusals with a remedy."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from receiver.parts import Credentials
from receiver.runtime.announcements import Announcements
from receiver.settings import SettingsInvalid, load
from receiver.store.database import open_database
from receiver.store.engines.postgresql import PostgresqlDatabase
from receiver.store.errors import DatabaseRefused, DatabaseUnavailable
from receiver.store.statements import Fetch, Work, alone
from submitter.signatures import new_secret
from submitter.vocabulary import State
from tests.support.postgresql import PostgresqlServer, running_postgresql
from tests.support.rows import execute, fetch
from tests.support.running_receiver import freepik_body, running_receiver, signed
from tests.support.waiting import eventually, patiently

_END_OTHERS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


async def test_a_lost_connection_is_unavailable_and_the_next_transaction_has_another(
    postgresql_server: PostgresqlServer,
) -> None:
    async with postgresql_server.database() as url:
        database, other = await open_database(url), await open_database(url)
        waiting = asyncio.create_task(database.write(alone(Fetch("SELECT pg_sleep(60)"))))
        active = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"

        async def sleeps() -> bool:
            return await fetch(other, active) == [(1,)]

        await eventually(sleeps)
        await fetch(other, _END_OTHERS)
        with pytest.raises(DatabaseUnavailable):
            await waiting

        async def works() -> bool:
            try:
                return await fetch(database, "SELECT 1") == [(1,)]
            except DatabaseUnavailable:
                return False

        await eventually(works)
        await database.close()
        await other.close()


async def test_a_connection_whose_transaction_was_cut_off_is_not_used_again(
    postgresql_server: PostgresqlServer,
) -> None:
    async with postgresql_server.database() as url:
        database, other = await PostgresqlDatabase.open(url, pool_size=1), await open_database(url)
        before = await fetch(database, "SELECT pg_backend_pid()")
        waiting = asyncio.create_task(database.read(alone(Fetch("SELECT pg_sleep(60)"))))
        active = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"

        async def sleepers() -> int:
            return int((await fetch(other, active))[0][0])

        await eventually(sleepers)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await fetch(database, "SELECT pg_backend_pid()") != before

        async def none_sleeps() -> bool:
            return await sleepers() == 0

        await eventually(none_sleeps)
        await database.close()
        await other.close()


async def test_a_database_that_cannot_be_reached_or_is_not_there_says_which(
    postgresql_server: PostgresqlServer,
) -> None:
    with pytest.raises(DatabaseUnavailable):
        await open_database("postgresql://127.0.0.1:1/receiver")
    with pytest.raises(DatabaseRefused, match="no_such_database"):
        await open_database(postgresql_server.url_of("no_such_database"))


async def test_more_transactions_than_connections_take_turns(postgresql_server: PostgresqlServer) -> None:
    async with postgresql_server.database() as url:
        database = await open_database(url)
        sleeping = [database.read(alone(Fetch("SELECT pg_backend_pid() FROM pg_sleep(0.01)"))) for _ in range(60)]
        backends = {rows[0][0] for rows in await asyncio.gather(*sleeping)}
        assert len(backends) <= 10
        await database.close()


async def test_signals_reach_other_processes_and_are_heard_again_after_a_lost_connection(
    postgresql_server: PostgresqlServer,
) -> None:
    async with postgresql_server.database() as url:
        here, there = await open_database(url), await open_database(url)
        sender, receiver = Announcements(here.notify, here.listen), Announcements(there.notify, there.listen)
        sent, heard = sender.wakes(), receiver.wakes()
        await patiently(heard.reader.wait())  # whoever begins to listen is woken, for what it missed
        heard.reader.clear()
        sent.reader.set()
        await sender.step()
        await patiently(heard.reader.wait())
        heard.reader.clear()
        await fetch(here, _END_OTHERS)
        await patiently(heard.reader.wait())
        await here.close()
        await there.close()


async def test_a_transaction_that_conflicts_is_called_again(postgresql_server: PostgresqlServer) -> None:
    """Two transactions that lock two rows in turn: one of them is the server's victim."""
    async with postgresql_server.database() as url:
        database = await open_database(url)
        await execute(database, "INSERT INTO providers (name, probes) VALUES ('a', 0), ('b', 0)")
        calls = 0

        def work(first: str, second: str) -> Work[None]:
            nonlocal calls
            calls += 1
            for name in (first, second):
                yield Fetch("SELECT probes FROM providers WHERE name = ?", (name,), "FOR UPDATE")
                yield Fetch("SELECT pg_sleep(0.2)")

        await asyncio.gather(database.write(lambda: work("a", "b")), database.write(lambda: work("b", "a")))
        assert calls >= 3
        await database.close()


def test_processes_on_one_database_must_share_their_secrets(tmp_path: Path) -> None:
    settings, _ = load(data_dir=tmp_path, database_url="postgresql://127.0.0.1/receiver", api_tokens="a-token-of-all")
    with pytest.raises(SettingsInvalid) as raised:
        Credentials.of(settings)
    names = [line.partition("=")[0] for line in raised.value.problems[1:]]
    assert names == ["RECEIVER_SECRET_KEYS", "RECEIVER_NOTIFY_SECRETS"]


def test_without_the_extra_the_refusal_names_it() -> None:
    program = (
        "import asyncio, sys; sys.modules['asyncpg'] = None\n"
        "from receiver.store.database import open_database\n"
        "asyncio.run(open_database('postgresql://127.0.0.1/receiver'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "upscale-receiver[postgresql]" in done.stderr.splitlines()[-1]


@pytest.mark.slow
async def test_a_restart_of_the_server_refuses_callbacks_and_loses_none(tmp_path: Path) -> None:
    with running_postgresql() as server:
        if not server.can_restart:
            pytest.skip("the tests restart only a server of their own; unset RECEIVER_TEST_POSTGRESQL_URL")
        async with (
            server.database() as url,
            running_receiver(tmp_path, database_url=url, notify_secrets=new_secret()) as here,
        ):
            kept, refused = await here.job(), await here.job()
            body = freepik_body(kept.remote_id or "", "COMPLETED")
            assert (await here.post(kept, body, signed(body))).status_code == 200
            await here.becomes(kept, State.SUCCEEDED)
            await asyncio.to_thread(server.stop)
            body = freepik_body(refused.remote_id or "", "COMPLETED")
            answer = await here.post(refused, body, signed(body))
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
            await asyncio.to_thread(server.start)

            async def taken() -> bool:
                return (await here.post(refused, body, signed(body))).status_code == 200

            await eventually(taken)
            await here.becomes(refused, State.SUCCEEDED)
            assert await here.events(kept) == ["job.succeeded"]
