"""One key and one content make one job, however often and however simultaneously they are posted."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.jobs import Job
from receiver.store.database import open_database
from receiver.store.jobs import JobStore, KeyReused
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from tests.support.engines import database_of
from tests.support.processes import LiveReceiver, live, wait_for_state
from tests.support.serving import serving

PICTURE = picture_bytes(96, 64)


async def post(
    client: httpx.AsyncClient, key: str, picture: bytes = PICTURE, *, scale: int = 2, as_json: bool = False
) -> httpx.Response:
    document = {"provider": "upscayl", "options": {"scale": scale}}
    headers = {"idempotency-key": key}
    if as_json:
        body = {**document, "image": {"base64": base64.b64encode(picture).decode()}}
        return await client.post("/v1/jobs", json=body, headers=headers)
    return await client.post(
        "/v1/jobs", data={"job": json.dumps(document)}, files={"image": ("x.jpg", picture)}, headers=headers
    )


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[LiveReceiver]:
    async with live(tmp_path) as (running, _):
        yield running


async def test_50_posts_at_once_with_one_key_make_one_job_whichever_way_they_carry_the_picture(
    receiver: LiveReceiver,
) -> None:
    async with receiver.client() as client:
        answers = await asyncio.gather(*(post(client, "k", as_json=n % 2 == 0) for n in range(50)))
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses == {202: 1, 200: 49}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len((await client.get("/v1/jobs")).json()["items"]) == 1


async def test_posts_by_url_with_one_key_fetch_once_and_make_one_job(tmp_path: Path) -> None:
    fetches: list[str] = []

    async def picture(request: Request) -> Response:
        fetches.append(request.url.path)
        return Response(PICTURE, media_type="image/jpeg")

    source = Starlette(routes=[Route("/in.jpg", picture)])
    async with serving(source) as origin, live(tmp_path) as (receiver, _), receiver.client() as client:
        body = {"provider": "upscayl", "image": {"url": f"{origin}/in.jpg"}}
        headers = {"idempotency-key": "k"}
        answers = await asyncio.gather(*(client.post("/v1/jobs", json=body, headers=headers) for _ in range(10)))
        assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 9}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert fetches == ["/in.jpg"]


async def test_other_content_under_the_same_key_is_refused_and_a_refused_post_is_not_remembered(
    receiver: LiveReceiver,
) -> None:
    async with receiver.client() as client:
        assert (await post(client, "k", scale=99)).status_code == 422
        assert (await post(client, "k", b"no picture")).status_code == 422
        first = await post(client, "k")
        assert first.status_code == 202
        for other in (await post(client, "k", scale=3), await post(client, "k", PICTURE + b"x")):
            assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
        assert (await post(client, "other")).json()["id"] != first.json()["id"]
        assert (await post(client, "k")).json()["id"] == first.json()["id"]


async def test_five_resubmissions_with_one_key_make_one_job(tmp_path: Path) -> None:
    sandbox = Sandbox(seed=1, turnaround_seconds=(0.05, 0.1), faults=Faults(accept_then_reset=1.0))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        job = (await post(client, "k")).json()
        await wait_for_state(client, job["id"], "unconfirmed")
        sandbox.faults = Faults()

        async def again(key: str) -> httpx.Response:
            path, headers = f"/v1/jobs/{job['id']}/resubmit", {"idempotency-key": key}
            return await client.post(path, json={"may_pay_twice": True}, headers=headers)

        answers = await asyncio.gather(*(again("again") for _ in range(5)))
        assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 4}
        assert len({(answer.json()["id"], answer.headers["location"]) for answer in answers}) == 1
        assert (await again("k")).json()["code"] == "idempotency_key_reused"
        await wait_for_state(client, answers[0].json()["id"], "succeeded")
        assert (await again("again")).json()["state"] == "succeeded"
        assert len(sandbox.accepted("upscayl")) == 2
        assert len(list((receiver.data_dir / "inputs").iterdir())) == 2, "no input of a job that was not made"


async def test_each_token_has_keys_of_its_own(tmp_path: Path) -> None:
    async with live(tmp_path, environment={"RECEIVER_API_TOKENS": "token-one,token-two"}) as (receiver, _):
        ids = set()
        for token in ("token-one", "token-two", "token-one"):
            headers = {"authorization": f"Bearer {token}"}
            async with httpx.AsyncClient(base_url=receiver.url, headers=headers, trust_env=False) as client:
                ids.add((await post(client, "k")).json()["id"])
        assert len(ids) == 2


async def test_two_processes_on_one_database_make_one_job_of_one_key(tmp_path: Path) -> None:
    async with live(tmp_path) as (first, _):
        second = LiveReceiver(first.data_dir, first.environment)
        await second.start()
        try:
            async with first.client() as client, second.client() as other:
                for key in range(5):
                    both = await asyncio.gather(*(post(c, str(key)) for c in (client, other) for _ in range(4)))
                    assert {answer.status_code for answer in both} == {200, 202}
                    assert len({answer.json()["id"] for answer in both}) == 1
                assert len((await client.get("/v1/jobs")).json()["items"]) == 5
        finally:
            await second.stop()


async def test_a_key_is_forgotten_after_24_hours(tmp_path: Path) -> None:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    database = await open_database(database_of(tmp_path))
    try:
        store = JobStore(database)
        first, new = await store.add_job(_job("job_1", now), idempotency=("t", "k", "d"))
        assert new
        late = now + timedelta(hours=23, minutes=59)
        assert await store.add_job(_job("job_2", late), idempotency=("t", "k", "d")) == (first, False)
        with pytest.raises(KeyReused):
            await store.add_job(_job("job_3", late), idempotency=("t", "k", "other"))
        later = now + timedelta(hours=24, minutes=1)
        again, new = await store.add_job(_job("job_4", later), idempotency=("t", "k", "other"))
        assert (again.id, new) == ("job_4", True)
    finally:
        await database.close()


def _job(job_id: str, now: datetime) -> Job:
    return Job(id=job_id, provider="upscayl", state=State.QUEUED, version=1, created_at=now, retry_at=now)
