"""A migration under a running process of the release before it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg

from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.cli import Done, program, receiver_command
from tests.support.processes import INTERPRETER, LiveReceiver, provider_environment, submit, wait_for_state
from tests.support.releases import next_release

_EVIDENCE = (
    "SELECT id, source, provider, job_id, received_at, read_at, headers, body, verdict FROM evidence ORDER BY id"
)


async def evidence(address: Path | str) -> list[Any]:
    """Read without `open_database`, which refuses the schema of a later release."""
    if isinstance(address, Path):
        with contextlib.closing(sqlite3.connect(address)) as file:
            return file.execute(_EVIDENCE).fetchall()
    database = await asyncpg.connect(address)
    try:
        return [tuple(row) for row in await database.fetch(_EVIDENCE)]
    finally:
        await database.close()


async def test_a_process_of_the_previous_release_takes_callbacks_while_the_next_migrates(
    tmp_path: Path, engine: dict[str, str]
) -> None:
    code = next_release(tmp_path / "code")
    sandbox = Sandbox(seed=7, turnaround_seconds=(0.1, 0.3))
    async with sandbox.serve() as origin:
        old = LiveReceiver(tmp_path / "data", {**provider_environment(Sandbox.base_urls(origin)), **engine})
        new = replace(old, environment={**old.environment, "PYTHONPATH": str(code)})
        if engine:
            done = await receiver_command("migrate", environment=old.full_environment(), directory=tmp_path)
            assert done.status == 0, done.err
        await old.start()
        try:
            async with old.client() as client:
                migrated = asyncio.create_task(migrate(new, tmp_path))
                jobs: list[str] = []
                while not migrated.done() or len(jobs) < 10:
                    jobs.append((await submit(client, "novita", picture_bytes(64, 64, seed=len(jobs))))["id"])
                    await asyncio.sleep(0.1)
                assert (await migrated).status == 0, (await migrated).err
                jobs.append((await submit(client, "novita", picture_bytes(64, 48)))["id"])
                shown = [await wait_for_state(client, job, kept=True) for job in jobs]
                assert {(job["state"], job["settled_by"]) for job in shown} == {("succeeded", "callback")}
        finally:
            await old.stop()
        address = engine.get("RECEIVER_DATABASE_URL") or old.data_dir / "receiver.db"
        kept = await evidence(address)
        await new.start()
        try:
            async with new.client() as client:
                for job in shown:
                    found = (await client.get(f"/v1/jobs/{job['id']}")).json()
                    assert found.pop("colour") is None
                    assert found == job
                last = await submit(client, "novita", picture_bytes(48, 64))
                assert (await wait_for_state(client, last["id"]))["colour"] == "blue"
        finally:
            await new.stop()
        assert (await evidence(address))[: len(kept)] == kept


async def migrate(release: LiveReceiver, directory: Path) -> Done:
    environment = release.full_environment()
    return await program(*INTERPRETER, "migrate", environment=environment, directory=directory)
