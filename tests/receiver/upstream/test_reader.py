"""From stored answers to update."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from receiver.domain.evidence import Evidence, headers_to_json
from receiver.domain.jobs import Source, Verdict
from receiver.domain.tokens import Tokens
from receiver.store.blobs import Blobs
from receiver.store.database import open_database
from receiver.store.errors import DatabaseUnavailable
from receiver.store.jobs import JobStore
from receiver.upstream.reader import Reading
from submitter.providers import build
from submitter.vocabulary import State
from tests.support.engines import database_of

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
async def reading(tmp_path: Path) -> AsyncIterator[Reading]:
    database, blobs = await open_database(database_of(tmp_path)), Blobs(tmp_path)
    blobs.prepare()
    yield Reading(JobStore(database), {"novita": build("novita", api_key="key")}, blobs, confirm="unsigned")
    await database.close()


@pytest.mark.parametrize("name", [b"plain", "é".encode(), "фото.png".encode(), b"\xe9"])
async def test_an_answer_is_read_whatever_letters_its_headers_have(name: bytes, reading: Reading) -> None:
    answer = httpx.Response(200, headers=[(b"x-name", name)], json={"task_id": "task-1"})
    as_texts = json.dumps(list(answer.headers.items()))  # how they were kept once
    for headers in (headers_to_json(answer.headers.raw), as_texts):
        evidence = Evidence(Source.RESPONSE, "novita", "job_1", NOW, headers, answer.content, status=200, id=1)
        read = await reading.read(evidence, NOW)
        assert read.update is not None
        assert read.update.report is not None
        assert (read.update.report.state, read.update.report.remote_id) == (State.RUNNING, "task-1")


async def test_an_internal_error_leaves_an_answer_unread_for_a_while(reading: Reading, tmp_path: Path) -> None:
    (tmp_path / "answers" / "broken").mkdir()  # reading it as a file is an OSError that is not "not found"
    kept = Evidence(Source.RESPONSE, "novita", "job_1", NOW, "[]", b"", status=200, body_name="broken", id=1)
    with pytest.raises(OSError, match="directory"):
        await reading.read(kept, NOW + timedelta(minutes=1))
    given_up = await reading.read(kept, NOW + timedelta(hours=1))
    assert given_up.verdict is Verdict.UNREADABLE
    with capture_logs() as lines:
        gone = await reading.read(replace(kept, body_name="gone"), NOW)
    assert [(line["event"], line["job"]) for line in lines] == [("reader_failed", "job_1")]
    assert gone.verdict is Verdict.UNREADABLE
    assert gone.update is not None
    assert gone.update.report is not None
    assert gone.update.report.state is State.UNCONFIRMED


@pytest.mark.sqlite(reason="a damaged page")
async def test_a_corrupt_page_leaves_evidence_unread_however_old_it_is(tmp_path: Path) -> None:
    path = tmp_path / "receiver.db"
    await (await open_database(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        pages = connection.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name = 'jobs'").fetchall()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        for (page,) in pages:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)
    database = await open_database(path)
    try:
        providers = {"novita": build("novita", api_key="key")}
        reading = Reading(JobStore(database), providers, Blobs(tmp_path), confirm="unsigned")
        refusal = json.dumps({"code": 503, "message": "busy"}).encode()  # what it means depends on the job's tries
        evidence = Evidence(Source.RESPONSE, "novita", "job_1", NOW, "[]", refusal, status=503, id=1)
        with pytest.raises(DatabaseUnavailable, match="malformed"):
            await reading.read(evidence, NOW + timedelta(days=1))
    finally:
        await database.close()


async def test_a_reason_that_quotes_a_token_of_ours_is_read_without_it(reading: Reading) -> None:
    token = Tokens(["key"]).callback("job_01k0000000000000000000000z", "novita")
    task = {"task_id": "task-1", "status": "TASK_STATUS_FAILED", "reason": f"could not call {token} back"}
    answer = httpx.Response(200, json={"task": task})
    headers = headers_to_json(answer.headers.raw)
    evidence = Evidence(Source.POLL, "novita", "job_1", NOW, headers, answer.content, status=200, id=1)
    update = (await reading.read(evidence, NOW)).update
    assert update is not None and update.report is not None and update.report.error is not None
    assert update.report.error.message == "could not call job_01k0000000000000000000000z.[redacted] back"
