"""`GET /v1/jobs/{id}/evidence` of much and of large evidence: whole, masked, in pages and pieces that are bounded."""

from __future__ import annotations

import base64
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.evidence import Evidence
from receiver.domain.jobs import Job, Source, Verdict
from receiver.store.blobs import Blobs
from submitter.vocabulary import Trust
from tests.support.running_receiver import RunningReceiver, running_receiver


async def keep(here: RunningReceiver, job: Job, *bodies: bytes, as_files: bool = False) -> None:
    now = datetime.now(UTC)
    for body in bodies:
        name = await Blobs(here.receiver.settings.data_dir).put_body(body) if as_files else None
        piece = Evidence(
            source=Source.RESPONSE,
            provider=job.provider,
            job_id=job.id,
            received_at=now,
            read_at=now,
            headers_json="[]",
            body=b"" if as_files else body,
            body_name=name,
            verdict=Verdict.BELIEVED,
            trust=Trust.OWN_CALL,
        )
        await here.receiver.parts.store.evidence.record([piece])


async def pages(here: RunningReceiver, job: Job, **query: Any) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = []
    cursor: str | None = None
    while True:
        parameters = {**query, **({"cursor": cursor} if cursor else {})}
        answer = await here.client.get(f"/v1/jobs/{job.id}/evidence", params=parameters)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        found.append(answer.json()["items"])
        cursor = answer.json()["next"]
        if cursor is None:
            return found


async def test_pages_end_at_a_number_of_bytes_and_nothing_is_left_out(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        bodies = [json.dumps({"n": n, "text": "x" * 900_000}).encode() for n in range(12)]
        await keep(here, job, *bodies)
        found = await pages(here, job, limit=200)
        assert [item["body"].encode() for page in found for item in page] == bodies
        assert max(len(page) for page in found) <= 4
        await keep(here, job, *[b"{}"] * 60)
        found = await pages(here, job)
        assert sum(len(page) for page in found) == 72
        assert len((await pages(here, job, limit=5))[0]) <= 5


@pytest.mark.parametrize("as_files", [False, True])
async def test_a_large_body_comes_whole_whatever_its_bytes(as_files: bool, tmp_path: Path) -> None:
    text = ('猫 "quoted" \\ \n\t\x00 é' * 50_000).encode()
    noise = random.Random(1).randbytes(700_001)
    cut = text[:-1] + b"\xe7"
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        await keep(here, job, text, noise, cut, b"x" * 600_000, b"", as_files=as_files)
        items = [item for page in await pages(here, job) for item in page]
        assert [item["body"] is None for item in items] == [False, True, True, False, False]
        assert items[0]["body"].encode() == text
        assert base64.b64decode(items[1]["body_base64"]) == noise
        assert base64.b64decode(items[2]["body_base64"]) == cut
        assert items[3]["body"] == "x" * 600_000
        assert all(item["source"] == "response" for item in items)


@pytest.mark.parametrize("end", [b'"', b'"\xff'])
async def test_what_is_masked_in_a_small_body_is_masked_anywhere_in_a_large_one(end: bytes, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        url = f"https://hooks.example.com{here.path(job)}"
        for before in (0, 1, 196_500, 196_600, 196_608 - len(url) // 2, 393_200):
            await keep(here, job, b'"' * before + url.encode() + b'" ' + b"y" * 300_000 + end)
        items = [item for page in await pages(here, job) for item in page]
        assert len(items) == 6
        token = url.rpartition("/")[2]
        for item in items:
            shown = item["body"] or base64.b64decode(item["body_base64"]).decode("latin-1")
            assert token not in shown
            assert "/callbacks/novita/[redacted]" in shown


async def test_an_answer_whose_file_is_gone_is_an_item_still(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        await keep(here, job, b"x" * 10, as_files=True)
        for path in (tmp_path / "data" / "answers").iterdir():
            path.unlink()
        ((item,),) = await pages(here, job)
        assert item["body"] == ""
