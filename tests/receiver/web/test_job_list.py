"""`GET /v1/jobs`: filters and their pages."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.jobs import InputImage
from receiver.store import job_list
from receiver.store.job_list import JobFilter
from receiver.store.statements import Fetch
from submitter.vocabulary import State
from tests.support.running_receiver import RunningReceiver, running_receiver


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[RunningReceiver]:
    async with running_receiver(tmp_path) as receiver:
        yield receiver


async def ids(here: RunningReceiver, **query: Any) -> list[str]:
    answer = await here.client.get("/v1/jobs", params=query)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["items"]]


async def test_text_is_found_in_ids_file_names_and_metadata(here: RunningReceiver) -> None:
    job = await here.job(metadata={"order": "2026-4711", "Kunde": "Größe_50%"}, input=InputImage("Harbour at Dusk.png"))
    other = await here.job("novita", metadata={"order": "x"})
    remote = job.remote_id or ""
    for text in (job.id, job.id[-10:], remote, remote[5:], "2026-4711", "4711", "harbour", "DUSK.PNG", "Größe_50%"):
        assert await ids(here, q=text) == [job.id], text
    for text in ("50%_", "order_", "nothing", "%", "'", '"; --'):
        assert job.id not in await ids(here, q=text) or text in ("%",), text
    assert await ids(here, q="order") == [other.id, job.id]
    assert await ids(here, q="order", state="queued") == []
    assert await ids(here, q="order", provider="novita") == [other.id]
    assert await ids(here, q=job.id, provider="novita") == []


async def test_jobs_between_two_moments(here: RunningReceiver) -> None:
    job = await here.job()
    at = job.created_at
    for since, until, there in (
        (at - timedelta(hours=1), at + timedelta(hours=1), True),
        (at + timedelta(hours=1), None, False),
        (None, at - timedelta(hours=1), False),
        (at - timedelta(hours=1), None, True),
    ):
        query = {name: value.isoformat() for name, value in (("since", since), ("until", until)) if value is not None}
        assert (await ids(here, **query) == [job.id]) is there, query
    answer = await here.client.get("/v1/jobs", params={"since": "yesterday"})
    assert (answer.status_code, answer.json()["field"]) == (422, "since")


async def test_pages_go_on_where_the_one_before_ended(here: RunningReceiver) -> None:
    made = [
        (await here.job(name, state)).id for state in (State.RUNNING, State.FAILED) for name in ("freepik", "novita")
    ]
    for query in ({}, {"state": "running,failed"}, {"provider": "freepik,novita"}, {"q": "job_"}):
        found, cursor = [], ""
        while True:
            page = (await here.client.get("/v1/jobs", params={**query, "cursor": cursor, "limit": 1})).json()
            found += [job["id"] for job in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert found == made[::-1], query


@pytest.mark.parametrize(
    "wanted",
    [
        JobFilter(),
        JobFilter(states=("failed",)),
        JobFilter(providers=("novita",)),
        JobFilter(states=("failed", "running"), providers=("novita", "freepik")),
        JobFilter(text="harbour"),
        JobFilter(states=("failed",), text="harbour"),
    ],
)
async def test_every_filter_is_a_range_of_an_index(wanted: JobFilter, here: RunningReceiver) -> None:
    work = job_list.job_page(wanted, before=None, limit=50)
    statement = next(work)
    assert isinstance(statement, Fetch)
    path = here.receiver.settings.database_path
    with sqlite3.connect(path) as database:
        values = [value if not isinstance(value, list) else value[0] for value in statement.values]
        sql = statement.sql.replace("??", "?")
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    database.close()
    scans = [line for line in plan if "jobs" in line and not line.startswith("SEARCH jobs USING")]
    assert scans == [], plan
    assert any("SEARCH jobs" in line for line in plan), plan
