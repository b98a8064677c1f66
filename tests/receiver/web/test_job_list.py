"""`GET /v1/jobs`: filters and their pages."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.ids import new_id
from receiver.domain.jobs import InputImage
from receiver.store import job_list
from receiver.store.job_list import JobFilter
from receiver.store.statements import Fetch
from submitter.vocabulary import State
from tests.support.pages import signed_in
from tests.support.rows import execute_many, fetch
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


async def fill(here: RunningReceiver, count: int) -> list[str]:
    """Add copies of a finished job, newest last; returns their ids."""
    job = await here.job(state=State.FAILED)
    database = here.receiver.parts.database
    (row,) = await fetch(database, "SELECT * FROM jobs WHERE id = ?", job.id)
    made = [new_id("job") for _ in range(count)]
    copies = [
        tuple({job.id: name, job.remote_id: f"task of {name}"}.get(value, value) for value in row) for name in made
    ]
    await execute_many(database, f"INSERT INTO jobs VALUES ({', '.join('?' * len(row))})", copies)
    return made


async def test_text_is_looked_for_in_the_newest_jobs_and_further_back_when_asked(here: RunningReceiver) -> None:
    old = await here.job(metadata={"order": "needle"})
    await fill(here, 1_600)
    page = (await here.client.get("/v1/jobs", params={"q": "needle"})).json()
    assert page["items"] == []
    further = (await here.client.get("/v1/jobs", params={"q": "needle", "cursor": page["next"]})).json()
    assert ([job["id"] for job in further["items"]], further["next"]) == ([old.id], None)
    assert await ids(here, q=old.id) == [old.id]
    assert await ids(here, q=old.remote_id) == [old.id]
    assert await ids(here, q=old.remote_id, state="queued") == []
    async with signed_in(here) as browser:
        shown = await browser.get("/jobs?q=needle")
        assert re.search(r"No job back to <time .*>Search further back</a>", shown.text, re.S)
        shown = await browser.get(f"/jobs?q=needle&cursor={page['next']}")
        assert old.id in shown.text and "Search further back" not in shown.text


async def test_within_other_filters_text_is_looked_for_in_fewer_jobs_at_first(here: RunningReceiver) -> None:
    old = await here.job(state=State.FAILED, metadata={"order": "needle"})
    await fill(here, 450)
    assert await ids(here, q="needle") == [old.id]
    for wanted in ({"state": "failed"}, {"provider": "freepik"}, {"state": "failed", "provider": "freepik"}):
        page = (await here.client.get("/v1/jobs", params={"q": "needle", **wanted})).json()
        assert page["items"] == []
        further = (await here.client.get("/v1/jobs", params={"q": "needle", **wanted, "cursor": page["next"]})).json()
        assert ([job["id"] for job in further["items"]], further["next"]) == ([old.id], None)


@pytest.mark.sqlite(reason="reads the plans of SQLite; tests/receiver/store/test_plans.py has both")
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
