"""
A SQLite installation moves to PostgreSQL: all of it is there, what was under way goes on, nothing is sent twice.

In full: RECEIVER_TEST_TRANSFER=100000 jobs; CI transfers fewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from receiver.store.blobs import Blobs
from receiver.store.database import open_database
from receiver.store.object_store import ObjectStore
from receiver.store.tables import metadata
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.bench import filling
from tests.support import forking
from tests.support.cli import receiver_command
from tests.support.object_stores import bucket
from tests.support.postgresql import PostgresqlServer
from tests.support.processes import LiveReceiver, live, submit, wait_for_state
from tests.support.rows import execute, execute_many, fetch
from tests.support.waiting import eventually, patiently

pytestmark = pytest.mark.sqlite(reason="the source is a file")

SECRETS = {"RECEIVER_SECRET_KEYS": "a-key-of-both"}
JOBS = int(os.environ.get("RECEIVER_TEST_TRANSFER", "300"))
SLOW = {"RECEIVER_CALLBACK_TIMEOUT": "600"}


async def test_everything_is_transferred_and_what_was_under_way_goes_on(
    tmp_path: Path, postgresql_server: PostgresqlServer
) -> None:
    sandbox = Sandbox(seed=7, turnaround_seconds=(0.1, 0.3))
    async with (
        postgresql_server.database(migrated=False) as url,
        live(tmp_path, sandbox=sandbox, environment={**SECRETS, **SLOW}) as (old, _),
    ):
        async with old.client() as client:
            ended = [await submit(client, provider, picture_bytes(120, 90)) for provider in ("freepik", "pixelcut")]
            for job in ended:
                await wait_for_state(client, job["id"], "succeeded", kept=True)
            await client.post("/v1/providers/upscayl/pause", json={"reason": "we move"})
            queued = await submit(client, "upscayl", picture_bytes(120, 90))
            sandbox.faults = Faults(lose=1.0)
            in_flight = await submit(client, "novita", picture_bytes(120, 90))
            await wait_for_state(client, in_flight["id"], "running")
            refused = await transfer(old, tmp_path, url)
            assert (refused.status, "stop it first" in refused.err) == (1, True), refused.err
            await eventually(lambda: all_events_settled(client))
            before = [await shown(client, job["id"]) for job in (*ended, queued, in_flight)]
            last_position = await newest_position(client)
        await old.stop()
        files = contents(tmp_path / "data")
        done = await transfer(old, tmp_path, url, "--json")
        assert done.status == 0, done.err
        assert contents(tmp_path / "data") == files, "nothing is changed at the source"
        copied = json.loads(done.out)["rows"]
        assert copied.keys() == {table.name for table in metadata.sorted_tables}
        assert (copied["jobs"], copied["images"]) == (4, 2)
        again = await transfer(old, tmp_path, url)
        assert (again.status, "is not empty" in again.err) == (1, True), again.err

        new = replace(old, environment={**old.environment, "RECEIVER_DATABASE_URL": url}, process=None)
        await new.start()
        try:
            async with new.client() as client:
                assert [await shown(client, job["id"]) for job in (*ended, queued, in_flight)] == before
                await client.post(f"/v1/jobs/{in_flight['id']}/poll")
                await wait_for_state(client, in_flight["id"], "succeeded", kept=True)
                assert (await client.post("/v1/providers/upscayl/resume")).json()["resumed"] is True
                await wait_for_state(client, queued["id"], "succeeded", kept=True)
                after = (await client.get("/v1/events", params={"after": last_position, "limit": 200})).json()["items"]
                positions = [event["position"] for event in after]
                assert positions == list(range(last_position + 1, last_position + 1 + len(positions)))
                assert {"job.succeeded", "provider.resumed"} <= {event["type"] for event in after}
        finally:
            await new.stop()
        assert [len(sandbox.accepted(name)) for name in ("freepik", "pixelcut", "upscayl", "novita")] == [1, 1, 1, 1]


async def test_rows_of_every_kind_are_the_same_and_numbers_go_on(
    tmp_path: Path, postgresql_server: PostgresqlServer
) -> None:
    environment = {"RECEIVER_DATA_DIR": str(tmp_path / "data")}
    receiver = LiveReceiver(tmp_path / "data", environment)
    source = await open_database(tmp_path / "data" / "receiver.db")
    body = bytes(range(256))
    for number in range(1, 4):
        text = "é\U0001f600 \n\t'\"" * number
        new = "INSERT INTO evidence (id, source, provider, job_id, received_at, headers, body, verdict, trust, note)"
        values = (number * 10, "callback", "novita", f"job_{number}", 1, text, body, "unread", "none", text)
        await execute(source, f"{new} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *values)
    await source.close()
    async with postgresql_server.database(migrated=False) as url:
        done = await transfer(receiver, tmp_path, url)
        assert done.status == 0, done.err
        assert "evidence: 3 rows, compared" in done.out
        assert "Do not serve" in done.out and "RECEIVER_SECRET_KEYS" in done.out
        target = await open_database(url)
        columns = "id, job_id, headers, body, note"
        assert [row[3] for row in await fetch(target, f"SELECT {columns} FROM evidence ORDER BY id")] == [body] * 3
        await execute(
            target,
            "INSERT INTO evidence (source, provider, received_at, headers, body, verdict, trust)"
            " VALUES ('callback', 'novita', 1, '[]', ?, 'unread', 'none')",
            b"",
        )
        assert await fetch(target, "SELECT max(id) FROM evidence") == [(31,)]
        await target.close()


async def test_an_interrupted_transfer_leaves_nothing_and_is_simply_repeated(
    tmp_path: Path, postgresql_server: PostgresqlServer
) -> None:
    source = await open_database(tmp_path / "data" / "receiver.db")
    new = "INSERT INTO evidence (source, provider, received_at, headers, body, verdict, trust)"
    row = ("callback", "novita", 1, "[]", bytes(100), "unread", "none")
    await execute_many(source, f"{new} VALUES (?, ?, ?, ?, ?, ?, ?)", [row] * 100)
    await source.close()
    receiver = LiveReceiver(tmp_path / "data")
    async with postgresql_server.database() as url, contextlib.AsyncExitStack() as ending:
        target = await asyncpg.connect(url)
        ending.push_async_callback(target.close)
        await target.execute(HELD_UP)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            await target.execute("SELECT pg_advisory_lock(1)")
            with tempfile.TemporaryFile() as out:
                arguments = ("transfer", "--to", url)
                environment = receiver.full_environment()
                running = await forking.fork(
                    "receiver", *arguments, environment=environment, directory=tmp_path, out=out, err=out
                )
                await eventually(lambda: target.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
                running.send_signal(number)
                status = await patiently(running.wait())
                out.seek(0)
                said = out.read()
            assert status == (-9 if number == signal.SIGKILL else 128 + number), said
            assert said == (b"" if number == signal.SIGKILL else b"receiver: interrupted\n")
            await target.execute("SELECT pg_advisory_unlock(1)")
            await eventually(lambda: target.fetchval(ALONE))
            assert await target.fetchval("SELECT count(*) FROM evidence") == 0
        done = await transfer(receiver, tmp_path, url)
        assert (done.status, await target.fetchval("SELECT count(*) FROM evidence")) == (0, 100), done.err


HELD_UP = """
CREATE FUNCTION wait_in_the_middle() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN IF NEW.id > 50 THEN PERFORM pg_advisory_xact_lock(1); END IF; RETURN NEW; END $$;
CREATE TRIGGER wait_in_the_middle BEFORE INSERT ON evidence FOR EACH ROW EXECUTE FUNCTION wait_in_the_middle();
"""
"""Has the second half of the evidence wait for whoever holds the lock."""
ALONE = "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()"


async def test_many_jobs_and_their_images_are_the_same_in_the_database_and_the_object_store(
    tmp_path: Path, postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bucket() as made, postgresql_server.database(migrated=False) as url:
        receiver = LiveReceiver(tmp_path / "data", {**SECRETS, **made.environment, "RECEIVER_BLOB_URL": made.url})
        Blobs(receiver.data_dir).prepare()
        source = await open_database(receiver.data_dir / "receiver.db")
        await asyncio.to_thread(filling.fill, receiver.data_dir / "receiver.db", evidence=3 * JOBS)
        pictures = {}
        for (job_id,) in await fetch(source, "SELECT id FROM jobs WHERE state = 'succeeded' LIMIT ?", JOBS // 20):
            pictures[f"images/{job_id}/0"] = content = b"\x89PNG\r\n\x1a\n" + os.urandom(1000)
            path = receiver.data_dir / "images" / job_id / "0"
            path.parent.mkdir()
            path.write_bytes(content)
        rows = [
            (key.split("/")[1], len(content), hashlib.sha256(content).hexdigest()) for key, content in pictures.items()
        ]
        new = "INSERT INTO images (job_id, n, state, tries, bytes, sha256) VALUES (?, 0, 'kept', 1, ?, ?)"
        await execute_many(source, new, rows)
        await source.close()
        before = contents(receiver.data_dir)
        began = time.monotonic()
        done = await transfer(receiver, tmp_path, url, "--json")
        print(f"{JOBS} jobs, {len(rows)} images: {time.monotonic() - began:.1f} s")
        assert done.status == 0, done.err
        copied = json.loads(done.out)
        assert (copied["rows"]["jobs"], copied["rows"]["evidence"]) == (JOBS, 3 * JOBS)
        assert (copied["rows"]["images"], copied["files"]) == (len(rows), len(rows))
        assert before.items() <= contents(receiver.data_dir).items(), "nothing is changed at the source"
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        assert await made.contents(ObjectStore(made.url)) == pictures


async def transfer(receiver: LiveReceiver, directory: Path, url: str, *more: str) -> Any:
    environment = receiver.full_environment()
    return await receiver_command("transfer", "--to", url, *more, environment=environment, directory=directory)


async def shown(client: httpx.AsyncClient, job_id: str) -> Any:
    """A job, its evidence and its images, as the API gives them."""
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    evidence = (await client.get(f"/v1/jobs/{job_id}/evidence")).json()
    images = [
        hashlib.sha256((await client.get(f"/v1/jobs/{job_id}/images/{n}")).content).hexdigest()
        for n in range(len(job["images"]))
    ]
    return job, evidence, images


async def newest_position(client: httpx.AsyncClient) -> int:
    events = (await client.get("/v1/events", params={"after": 0, "limit": 200})).json()["items"]
    return int(events[-1]["position"])


async def all_events_settled(client: httpx.AsyncClient) -> bool:
    events = (await client.get("/v1/events", params={"after": 0, "limit": 200})).json()["items"]
    return Counter(event["type"] for event in events)["job.images_kept"] == 2


def contents(directory: Path) -> dict[str, str]:
    """Return the contents of all files, except for the memory that readers of the database share."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }
