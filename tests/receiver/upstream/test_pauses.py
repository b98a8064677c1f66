"""A provider that refuses our key or our credit is paused: its queue waits, and goes on once the cause is mended."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.store.database import Database, open_database
from receiver.upstream.pauses import Pauses
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.engines import database_of
from tests.support.processes import live, submit
from tests.support.rows import fetch
from tests.support.waiting import eventually

PROVIDERS = ("freepik", "apixo", "novita", "upscayl", "pixelcut")
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["bad_key", "no_credit"])
async def test_a_queue_costs_two_requests_however_long_it_is_and_is_done_after_the_cause_is_mended(
    fault: str, tmp_path: Path
) -> None:
    sandbox = Sandbox(seed=3, turnaround_seconds=(0.01, 0.02), faults=Faults(**{fault: 1.0}))
    lengths = dict.fromkeys(PROVIDERS, 10) | {"freepik": 100, "pixelcut": 50}
    environment = {"RECEIVER_POLL_INTERVAL": "0.5"}
    picture = picture_bytes(64, 64)
    async with live(tmp_path, sandbox=sandbox, environment=environment) as (receiver, _), receiver.client() as client:
        slots = asyncio.Semaphore(8)

        async def post(provider: str) -> str:
            async with slots:
                return str((await submit(client, provider, picture))["id"])

        await asyncio.gather(*(post(provider) for provider, jobs in lengths.items() for _ in range(jobs)))
        shown: dict[str, Any] = {}

        async def all_queued() -> bool:  # a job that is being sent is not in the queue
            shown.update({item["name"]: item for item in (await client.get("/v1/providers")).json()["items"]})
            return {name: shown[name]["queue"]["length"] for name in PROVIDERS} == lengths

        await eventually(all_queued)
        for provider in PROVIDERS:
            assert 1 <= sandbox.calls(provider) <= 2
            assert shown[provider]["paused"]["reason"]
            assert shown[provider]["queue"] == {"length": lengths[provider], "done_in_seconds": None, "done_at": None}
        sandbox.faults = Faults()
        for provider in PROVIDERS:
            assert (await client.post(f"/v1/providers/{provider}/resume")).json()["resumed"] is True

        async def all_done() -> bool:
            states: dict[str, str | int] = {"state": "queued,sending,running,unconfirmed,failed,expired", "limit": 1}
            return not (await client.get("/v1/jobs", params=states)).json()["items"]

        await eventually(all_done)
        assert {provider: len(sandbox.accepted(provider)) for provider in PROVIDERS} == lengths
        events = (await client.get("/v1/events", params={"after": 0, "limit": 200, "type": "provider.paused"})).json()
        assert sorted(event["data"]["name"] for event in events["items"]) == sorted(PROVIDERS)
        events = (await client.get("/v1/events", params={"after": 0, "limit": 200, "type": "provider.resumed"})).json()
        assert sorted(event["data"]["name"] for event in events["items"]) == sorted(PROVIDERS)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await open_database(database_of(tmp_path))
    yield database
    await database.close()


async def reported(database: Database) -> list[str]:
    return [row[0] for row in await fetch(database, "SELECT type FROM events ORDER BY position, id")]


async def test_one_job_probes_after_30_seconds_and_each_refused_probe_doubles_the_wait(database: Database) -> None:
    pauses, now = Pauses(database), NOW
    await pauses.refused("novita", now, sent_at=now, reason="402: empty")
    for seconds in (30, 60, 120):
        assert not pauses.may_probe("novita", now + timedelta(seconds=seconds - 1))
        now += timedelta(seconds=seconds)
        assert pauses.may_probe("novita", now)
        assert await pauses.begin_probe("novita", "job_1", now)
        assert not pauses.may_probe("novita", now + timedelta(hours=2))
        await pauses.refused("novita", now, sent_at=now, reason="402: empty")
        pauses.probe_ended("novita", "job_1")
    assert await reported(database) == ["provider.paused"]


async def test_a_probe_that_the_provider_takes_ends_the_pause_and_is_reported_once(database: Database) -> None:
    pauses = Pauses(database)
    await pauses.refused("novita", NOW, sent_at=NOW, reason="401: no")
    later = NOW + timedelta(seconds=31)
    assert await pauses.begin_probe("novita", "job_1", later)
    assert await pauses.answered("novita", later, sent_at=later)
    assert not await pauses.answered("novita", later, sent_at=later)
    assert pauses.of("novita") is None
    assert await reported(database) == ["provider.paused", "provider.resumed"]


async def test_calls_that_were_under_way_neither_lengthen_nor_end_a_pause(database: Database) -> None:
    pauses, before = Pauses(database), NOW - timedelta(seconds=1)
    await asyncio.gather(*(pauses.refused("apixo", NOW, sent_at=before, reason="401: no") for _ in range(8)))
    pause = pauses.of("apixo")
    assert pause is not None
    assert (pause.probes, pause.probe_at) == (0, NOW + timedelta(seconds=30))
    assert not await pauses.answered("apixo", NOW, sent_at=before)
    assert pauses.of("apixo") is not None
    assert await reported(database) == ["provider.paused"]


async def test_a_pause_holds_for_every_process_on_the_database_and_is_reported_once(database: Database) -> None:
    first, other = Pauses(database), Pauses(database)
    await first.refused("apixo", NOW, sent_at=NOW, reason="401: no")
    await other.refused("apixo", NOW + timedelta(seconds=1), sent_at=NOW, reason="401: no")
    assert await reported(database) == ["provider.paused"]
    third = Pauses(database)
    await third.refresh(NOW)
    assert third.of("apixo") is not None
    assert await first.resume("apixo", NOW)
    assert not await other.resume("apixo", NOW)
    await third.refresh(NOW + timedelta(seconds=2))
    assert third.of("apixo") is None
    assert await reported(database) == ["provider.paused", "provider.resumed"]


async def test_only_one_of_several_processes_probes(database: Database) -> None:
    processes = [Pauses(database) for _ in range(4)]
    await processes[0].refused("novita", NOW, sent_at=NOW, reason="402: empty")
    at = NOW + timedelta(seconds=30)
    for pauses in processes:
        await pauses.refresh(at)
        assert pauses.may_probe("novita", at)
    begun = await asyncio.gather(*(pauses.begin_probe("novita", f"job_{n}", at) for n, pauses in enumerate(processes)))
    assert sorted(begun) == [False, False, False, True]
    for pauses in processes:
        await pauses.refresh(at)
        assert not pauses.may_probe("novita", at), "the next probe waits its delay, for all"


async def test_a_pause_that_ends_while_its_probe_is_claimed_stops_nothing(database: Database) -> None:
    pauses = Pauses(database)
    await pauses.refused("novita", NOW, sent_at=NOW, reason="402: empty")
    at = NOW + timedelta(seconds=30)
    assert pauses.may_probe("novita", at)
    assert await pauses.resume("novita", at)
    assert await pauses.begin_probe("novita", "job_1", at)
    await pauses.refused("novita", at, sent_at=at, reason="402: empty")
    assert pauses.may_probe("novita", at + timedelta(seconds=30))
