"""A data directory that vanishes under a running receiver: what can't be kept is refused, and the operator is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.cli import receiver_command
from tests.support.processes import live, submit, wait_for_state
from tests.support.waiting import eventually

pytestmark = pytest.mark.sqlite(reason="the file is gone")


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
async def test_callbacks_are_refused_and_the_receiver_is_not_ready(tmp_path: Path, how: str) -> None:
    sandbox = Sandbox(seed=5, turnaround_seconds=(0.1, 0.2))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        job = await submit(client, "apixo", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], kept=True)
        callback_url = sandbox.accepted("apixo")[0].callback_url or ""
        assert (await client.post(callback_url, json={"taskId": "x"})).status_code == 200
        if how == "deleted":
            shutil.rmtree(receiver.data_dir)
        else:
            receiver.data_dir.rename(tmp_path / "elsewhere")
        if how == "replaced":
            environment = receiver.full_environment()
            assert (await receiver_command("migrate", environment=environment, directory=tmp_path)).status == 0
        answer = await client.post(callback_url, json={"taskId": "x"})
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        posted = await client.post("/v1/jobs", json={"provider": "freepik", "image": {"url": "http://127.0.0.1:9/a"}})
        assert posted.status_code in (422, 503)

        async def not_ready() -> bool:  # a write that worked speaks for the next second
            ready = await client.get("/readyz")
            return ready.status_code == 503 and "receiver.db" in ready.json()["checks"]["database"]

        await eventually(not_ready)
        assert (await client.get("/healthz")).status_code == 200
        if how == "moved":
            (tmp_path / "elsewhere").rename(receiver.data_dir)
            assert (await client.post(callback_url, json={"taskId": "x"})).status_code == 200
        assert await receiver.stop() == 0
        assert receiver.log.count("database_gone") == 1
        assert "Traceback" not in receiver.log
