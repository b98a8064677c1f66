"""A new field of a job needs the entity, a migration, and the rule that sets it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from submitter import AsyncClient
from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import TOKEN, live, submit, wait_for_state
from tests.support.releases import next_release


@pytest.mark.sqlite(reason="its migration is done by opening the file")
async def test_a_new_job_field_takes_three_places(tmp_path: Path) -> None:
    code = next_release(tmp_path / "code")
    async with live(tmp_path, environment={"PYTHONPATH": str(code)}) as (receiver, _), receiver.client() as client:
        job = await submit(client, "upscayl", picture_bytes(80, 60))
        assert job["colour"] is None
        shown = await wait_for_state(client, job["id"], "succeeded")
        assert shown["colour"] == "blue"
        listed = (await client.get("/v1/jobs")).json()["items"]
        assert [item["colour"] for item in listed] == ["blue"]
        events = (await client.get("/v1/events", params={"type": "job.succeeded"})).json()["items"]
        assert [event["data"]["colour"] for event in events] == ["blue"]
        described = (await client.get("/openapi.json")).json()["components"]["schemas"]["Job"]
        assert described["properties"]["colour"] == {
            "type": ["string", "null"],
            "description": "What the result mostly is.",
        }
        assert "colour" in described["required"]
        async with AsyncClient(receiver.url, TOKEN) as sdk:
            assert (await sdk.job(job["id"]))["colour"] == "blue"
