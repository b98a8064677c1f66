"""Through PgBouncer in transaction mode, with a direct connection for LISTEN."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.runtime.announcements import Announcements
from receiver.store.database import open_database
from receiver.store.statements import FOR_UPDATE, Fetch, Run, Work
from submitter.sandbox import test_picture as picture_bytes
from tests.receiver.test_processes import web_and_worker
from tests.receiver.test_spine import SETTLED_BY
from tests.support.pgbouncer import CONNECTIONS, needs_pgbouncer, pooled
from tests.support.postgresql import PostgresqlServer
from tests.support.processes import submit, wait_for_state
from tests.support.rows import execute, fetch
from tests.support.waiting import patiently

pytestmark = needs_pgbouncer


@pytest.fixture
async def urls(tmp_path: Path, postgresql_server: PostgresqlServer) -> AsyncIterator[tuple[str, str]]:
    """A database through PgBouncer, and directly."""
    async with postgresql_server.database() as direct, pooled(postgresql_server, direct, tmp_path / "pool") as url:
        yield url, direct


async def test_every_provider_does_its_job_through_the_pooler(tmp_path: Path, urls: tuple[str, str]) -> None:
    url, direct = urls
    engine = {
        "RECEIVER_DATABASE_URL": url,
        "RECEIVER_DATABASE_LISTEN_URL": direct,
        "RECEIVER_SECRET_KEYS": "a-key-that-all-processes-share",
    }
    async with web_and_worker(tmp_path, engine) as (web, worker, _), web.client() as client:
        for provider, settled_by in SETTLED_BY.items():
            job = await submit(client, provider, picture_bytes(120, 90))
            done = await wait_for_state(client, job["id"], kept=True)
            assert (done["state"], done["settled_by"]) == ("succeeded", settled_by)
        assert "loop_failed" not in worker.log
        assert "listening_failed" not in web.log


async def test_a_wake_up_through_the_pooler_reaches_the_process_that_listens_directly(urls: tuple[str, str]) -> None:
    url, direct = urls
    here, there = await open_database(url, listen_url=direct), await open_database(url, listen_url=direct)
    sender, receiver = Announcements(here.notify, here.listen), Announcements(there.notify, there.listen)
    sent, heard = sender.wakes(), receiver.wakes()
    await patiently(heard.reader.wait())  # who begins to listen is woken once, for what it missed
    for _ in range(20):
        heard.reader.clear()
        sent.reader.set()
        await sender.step()
        await patiently(heard.reader.wait())
    await here.close()
    await there.close()


async def test_many_transactions_share_few_connections(urls: tuple[str, str]) -> None:
    url, direct = urls
    databases = [await open_database(url, listen_url=direct) for _ in range(4)]
    await execute(databases[0], "INSERT INTO providers (name, probes) VALUES ('a', 0)")

    def work() -> Work[int]:
        ((probes,),) = yield Fetch("SELECT probes FROM providers WHERE name = ?", ("a",), FOR_UPDATE)
        yield Run("UPDATE providers SET probes = ? WHERE name = 'a'", (probes + 1,))
        ((backend,),) = yield Fetch("SELECT pg_backend_pid()")
        return int(backend)

    backends = await asyncio.gather(*(database.write(work) for database in databases for _ in range(25)))
    assert await fetch(databases[0], "SELECT probes FROM providers") == [(100,)]
    assert len(set(backends)) <= CONNECTIONS
    for database in databases:
        await database.close()
