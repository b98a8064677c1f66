"""The fields of a job about its input and its waiting."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from receiver.domain.pauses import Pause
from receiver.store.blobs import Blobs
from receiver.store.providers import ProviderTable
from receiver.web.job_request import file_name_of, job_request_from_json
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from tests.support.processes import live, wait_for_state
from tests.support.rows import fetch
from tests.support.running_receiver import running_receiver

PICTURE = picture_bytes(80, 60)
SIZE = {"width": 80, "height": 60, "bytes": len(PICTURE)}


async def upload(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    answer = await client.post(
        "/v1/jobs", data={"job": json.dumps({"provider": "upscayl"})}, files={"image": (name, PICTURE)}
    )
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def test_a_job_knows_its_input_and_so_does_its_repetition(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        uploaded = await upload(client, "cat ü.jpg")
        assert uploaded["input"] == {"file_name": "cat ü.jpg", **SIZE}
        encoded = {"provider": "upscayl", "image": {"base64": base64.b64encode(PICTURE).decode()}}
        assert (await client.post("/v1/jobs", json=encoded)).json()["input"] == {"file_name": None, **SIZE}
        ended = await wait_for_state(client, uploaded["id"])
        assert (ended["input"], ended["waiting_for"]) == (uploaded["input"], None)
        canceled = await upload(client, "dog.jpg")
        await client.post(f"/v1/jobs/{canceled['id']}/cancel", json={"abandon": True})
        again = (await client.post(f"/v1/jobs/{canceled['id']}/resubmit")).json()
        assert (again["resubmit_of"], again["input"]["file_name"]) == (canceled["id"], "dog.jpg")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cat.jpg", "cat.jpg"),
        ("/home/me/cat.jpg", "cat.jpg"),
        ("C:\\Users\\me\\cat.jpg", "cat.jpg"),
        ("../../etc/passwd", "passwd"),
        ("a\x00b\nc\u202e.jpg", "abc.jpg"),
        ("x" * 300, "x" * 255),
        ("", None),
        ("folder/", None),
        ("\x07 ", None),
    ],
)
def test_a_file_name_has_no_folders_and_nothing_that_can_not_be_printed(path: str, name: str | None) -> None:
    assert file_name_of(path) == name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x.example/a/cat%20%C3%BC.jpg?token=secret#part", "cat ü.jpg"),
        ("https://x.example", None),
        ("https://[x", None),
    ],
)
def test_the_file_name_of_a_url_is_the_end_of_its_path(url: str, name: str | None, tmp_path: Path) -> None:
    body = json.dumps({"provider": "novita", "image": {"url": url}}).encode()
    assert job_request_from_json(body, Blobs(tmp_path)).file_name == name


async def test_a_queued_job_of_a_paused_provider_says_so(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita", State.QUEUED)
        shown = (await here.client.get(f"/v1/jobs/{job.id}")).json()
        assert shown["waiting_for"] == {"reason": "rate_limit", "until": None}
        now = datetime.now(UTC)
        pause = Pause("no credit", now, now + timedelta(minutes=1), 0)
        await ProviderTable(here.receiver.parts.database).pause("novita", pause, now)
        await here.receiver.parts.pauses.load()
        listed = (await here.client.get("/v1/jobs")).json()["items"]
        assert [item["waiting_for"]["reason"] for item in listed] == ["provider_paused"]
        assert listed[0]["waiting_for"]["until"].endswith("Z")
        late = await here.job("novita", State.QUEUED)
        query = "SELECT body FROM events WHERE job_id = ?"
        ((body,),) = await fetch(here.receiver.parts.database, query, late.id)
        assert json.loads(body)["data"]["waiting_for"] == listed[0]["waiting_for"]
