"""From stored answers to news."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from receiver.blobs import Blobs
from receiver.database import Database
from receiver.evidence import Evidence
from receiver.jobs import Source
from receiver.reading import Reading
from receiver.store import Store
from submitter.providers import build
from submitter.vocabulary import State

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
async def reading(tmp_path: Path) -> AsyncIterator[Reading]:
    database, blobs = await Database.open(tmp_path / "receiver.db"), Blobs(tmp_path)
    blobs.prepare()
    yield Reading(Store(database), {"novita": build("novita", api_key="key")}, blobs, confirm="unsigned")
    await database.close()


@pytest.mark.parametrize("name", [b"plain", "é".encode(), "фото.png".encode(), b"\xe9"])
async def test_an_answer_is_read_whatever_letters_its_headers_have(name: bytes, reading: Reading) -> None:
    answer = httpx.Response(200, headers=[(b"x-name", name)], json={"task_id": "task-1"})
    headers = tuple(answer.headers.items())
    evidence = Evidence(Source.RESPONSE, "novita", "job_1", NOW, headers, answer.content, status=200, id=1)
    read = await reading.read(evidence, NOW)
    assert read.news is not None
    assert read.news.report is not None
    assert (read.news.report.state, read.news.report.remote_id) == (State.RUNNING, "task-1")
