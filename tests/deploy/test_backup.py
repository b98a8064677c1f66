"""`receiver backup` while jobs run, the machine lost, `receiver restore` on another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import httpx
import pytest

from submitter import AsyncClient
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.signatures import new_secret
from tests.support.cli import Done, receiver_command
from tests.support.forwarded import Application, listening
from tests.support.processes import TOKEN, LiveReceiver, live, submit, wait_for_state
from tests.support.waiting import eventually, patiently

pytestmark = pytest.mark.sqlite(reason="backup and restore are of the file")


async def command(receiver: LiveReceiver, *arguments: str) -> Done:
    return await receiver_command(
        *arguments, environment=receiver.full_environment(), directory=receiver.data_dir.parent
    )


async def test_a_backup_under_load_brings_back_jobs_images_and_callback_urls(tmp_path: Path) -> None:
    sandbox = Sandbox(seed=3, turnaround_seconds=(0.1, 0.2))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        finished = await submit(client, "freepik", picture_bytes(160, 120))
        before = await wait_for_state(client, finished["id"], kept=True)
        picture = (await client.get(f"/v1/jobs/{finished['id']}/images/0")).content

        async def load() -> None:
            while True:
                await submit(client, "apixo", picture_bytes(160, 120))

        busy = asyncio.create_task(load())
        done = await command(receiver, "backup", str(tmp_path / "kept"))
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)
        assert done.status == 0, done.err
        again = await command(receiver, "backup", str(tmp_path / "kept"))
        assert (again.status, "is there already" in again.err) == (1, True)
        refused = await command(receiver, "restore", str(tmp_path / "kept"))
        assert (refused.status, "out of the way" in refused.err) == (1, True)

        await receiver.kill()
        shutil.rmtree(receiver.data_dir)
        assert (await command(receiver, "restore", str(tmp_path / "kept"))).status == 0
        assert (receiver.data_dir / "receiver.db").stat().st_mode & 0o777 == 0o600
        assert (receiver.data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600
        await receiver.start()
        after = (await client.get(f"/v1/jobs/{finished['id']}")).json()
        assert after == before
        assert (await client.get(f"/v1/jobs/{finished['id']}/images/0")).content == picture
        callback_url = sandbox.accepted("freepik")[0].callback_url or ""
        assert (await client.get(callback_url)).status_code == 200


async def test_a_damaged_backup_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    receiver = LiveReceiver(tmp_path / "data")
    (tmp_path / "kept").mkdir()
    assert "holds no backup" in (await command(receiver, "restore", str(tmp_path / "kept"))).err
    (tmp_path / "kept" / "receiver.db").write_bytes(b"not a database at all, whatever its name" * 100)
    done = await command(receiver, "restore", str(tmp_path / "kept"))
    assert (done.status, "damaged" in done.err) == (1, True)
    assert not receiver.data_dir.exists()
    assert "there is no database" in (await command(receiver, "backup", str(tmp_path / "other"))).err


async def test_a_backup_that_failed_leaves_nothing_behind(tmp_path: Path) -> None:
    receiver = LiveReceiver(tmp_path / "data")
    receiver.data_dir.mkdir()
    database = receiver.data_dir / "receiver.db"
    for content in (os.urandom(200_000), b""):
        database.write_bytes(content)
        done = await command(receiver, "backup", str(tmp_path / "kept"))
        assert (done.status, done.out, len(done.err.splitlines())) == (1, "", 1), done.err
        assert str(database) in done.err
        assert database.read_bytes() == content
    database.unlink()
    assert (await command(receiver, "migrate")).status == 0
    for name in ("1", "2", "3"):
        (receiver.data_dir / "images" / name).mkdir(parents=True)
    (receiver.data_dir / "images" / "2" / "0").symlink_to("0")  # can't be copied
    assert (await command(receiver, "backup", str(tmp_path / "kept"))).status == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


async def test_a_copy_without_a_database_of_ours_is_no_backup(tmp_path: Path) -> None:
    receiver = LiveReceiver(tmp_path / "data")
    kept = tmp_path / "kept"
    kept.mkdir()
    tables = ["", "CREATE TABLE jobs (id)", "CREATE TABLE alembic_version (version_num)"]
    tables.append(";".join(["", *tables[1:], "CREATE TABLE evidence (id)"]))
    tables.append(f"{tables[-1]}; INSERT INTO alembic_version VALUES ('9999')")
    for script in tables:
        (kept / "receiver.db").unlink(missing_ok=True)
        (kept / "receiver.db").touch()
        with contextlib.closing(sqlite3.connect(kept / "receiver.db")) as database:
            database.executescript(script)
        done = await command(receiver, "restore", str(kept))
        assert (done.status, done.out, len(done.err.splitlines())) == (1, "", 1), (script, done.err)
        assert "not known to this version" in done.err if "9999" in script else "not a receiver's database" in done.err
        assert not receiver.data_dir.exists()


async def test_a_restored_sandbox_is_a_sandbox_and_none_that_runs(tmp_path: Path) -> None:
    receiver = LiveReceiver(tmp_path / "data")
    assert (await command(receiver, "migrate")).status == 0
    mark = receiver.data_dir / "sandbox.json"
    mark.write_text('{"running": [{"pid": 1, "sandbox": "http://127.0.0.1:1", "receiver": "http://127.0.0.1:2"}]}')
    assert (await command(receiver, "backup", str(tmp_path / "sandbox"))).status == 0
    mark.unlink()
    assert (await command(receiver, "backup", str(tmp_path / "real"))).status == 0
    for name in ("sandbox", "real"):
        shutil.rmtree(receiver.data_dir)
        receiver.data_dir.mkdir()
        mark.write_text("{}")  # left over from what was there before
        assert (await command(receiver, "restore", str(tmp_path / name))).status == 0
        assert mark.exists() == (name == "sandbox")
        if mark.exists():
            assert mark.read_text() == "{}"
            assert mark.stat().st_mode & 0o777 == 0o600


def _modes(directory: Path) -> dict[str, set[int]]:
    paths = [directory, *directory.rglob("*")]
    return {
        "files": {path.stat().st_mode & 0o777 for path in paths if path.is_file()},
        "directories": {path.stat().st_mode & 0o777 for path in paths if path.is_dir()},
    }


async def test_what_was_queued_in_a_backup_is_not_paid_for_twice(tmp_path: Path) -> None:
    sandbox = Sandbox(seed=3, turnaround_seconds=(0.1, 0.2))
    slow = {"FREEPIK_RATE": "1/3600"}
    async with live(tmp_path, sandbox=sandbox, environment=slow) as (receiver, _), receiver.client() as client:
        jobs = [await submit(client, "freepik", picture_bytes(160, 120), metadata={"n": n}) for n in range(4)]
        await wait_for_state(client, jobs[0]["id"], kept=True)
        assert (await command(receiver, "backup", str(tmp_path / "kept"))).status == 0
        assert _modes(tmp_path / "kept") == {"files": {0o600}, "directories": {0o700}}

        await receiver.stop()
        receiver.environment = {**receiver.environment, "FREEPIK_RATE": "1000/1"}
        await receiver.start()
        for job in jobs:
            await wait_for_state(client, job["id"])
        position = (await client.get("/v1/events", params={"limit": 500})).json()["items"][-1]["position"]
        assert len(sandbox.accepted("freepik")) == 4

        await receiver.stop()
        shutil.rmtree(receiver.data_dir)
        for path in (tmp_path / "kept").rglob("*"):
            path.chmod(0o777)  # as on a disk that knows no modes
        done = await command(receiver, "restore", str(tmp_path / "kept"))
        assert done.status == 0, done.err
        held = [job["id"] for job in jobs[1:]]
        assert all(job_id in done.out for job_id in held) and jobs[0]["id"] not in done.out
        assert "may-pay-twice" in done.out and "--abandon" in done.out
        assert _modes(receiver.data_dir) == {"files": {0o600}, "directories": {0o700}}

        await receiver.start()
        ahead = await client.get("/v1/events", params={"after": position + 100})
        assert (ahead.status_code, ahead.json()["code"]) == (409, "position_ahead")
        since = await client.get("/v1/events", params={"after": ahead.json()["resume_after"]})
        assert [event["type"] for event in since.json()["items"]] == ["job.unconfirmed"] * 3
        new = await submit(client, "freepik", picture_bytes(160, 120))
        await wait_for_state(client, new["id"])
        for job_id in held:
            job = (await client.get(f"/v1/jobs/{job_id}")).json()
            assert (job["state"], job["error"]["code"]) == ("unconfirmed", "restored")
        assert len(sandbox.accepted("freepik")) == 5
        events = (await client.get("/v1/events", params={"type": "job.unconfirmed"})).json()["items"]
        assert sorted(event["job_id"] for event in events) == held
        again = await client.post(f"/v1/jobs/{held[0]}/resubmit", json={"may_pay_twice": True})
        assert again.status_code == 202
        assert (await wait_for_state(client, again.json()["id"]))["state"] == "succeeded"
        given_up = await client.post(f"/v1/jobs/{held[1]}/cancel", json={"abandon": True})
        assert given_up.json()["state"] == "canceled"


async def test_a_backup_is_not_restored_under_a_running_receiver(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _):
        assert (await command(receiver, "backup", str(tmp_path / "kept"))).status == 0
        moved = receiver.data_dir / "receiver.db"
        moved.rename(tmp_path / "receiver.db")
        done = await command(receiver, "restore", str(tmp_path / "kept"))
        assert (done.status, "move the data directory" in done.err) == (1, True)
        for name in ("receiver.db-wal", "receiver.db-shm"):
            (receiver.data_dir / name).rename(tmp_path / name)
        done = await command(receiver, "restore", str(tmp_path / "kept"))
        assert (done.status, "stop it first" in done.err) == (1, True)
        assert not moved.exists()
        for name in ("receiver.db", "receiver.db-wal", "receiver.db-shm"):
            (tmp_path / name).rename(receiver.data_dir / name)


@pytest.mark.parametrize("how", ["restore", "copied by hand"])
@pytest.mark.parametrize("meanwhile", [0, 2])
async def test_readers_that_were_ahead_miss_nothing_after_a_restore(tmp_path: Path, how: str, meanwhile: int) -> None:
    """
    Neither what was written between the restore and their return, nor what comes then.

    *meanwhile* jobs were seen by the readers and forgotten by the restore; more than that come before they return.
    """
    secret = new_secret()
    application = Application(secret)
    async with live(tmp_path) as (receiver, _), receiver.client() as client, await application.serve():
        await done_job(client)
        kept = tmp_path / "kept"
        if how == "restore":
            assert (await command(receiver, "backup", str(kept))).status == 0
        else:
            await receiver.stop()
            shutil.copytree(receiver.data_dir, kept)
            await receiver.start()
        for _ in range(meanwhile):
            await done_job(client)
        seen = (await client.get("/v1/events", params={"limit": 500})).json()["items"][-1]["position"]
        await receiver.stop()
        shutil.rmtree(receiver.data_dir)
        if how == "restore":
            assert (await command(receiver, "restore", str(kept))).status == 0
        else:
            shutil.copytree(kept, receiver.data_dir)
        await receiver.start()
        job = await done_job(client)
        new = [event["id"] for event in (await client.get("/v1/events", params={"job": job})).json()["items"]]
        assert len(new) >= 3
        async with AsyncClient(receiver.url, TOKEN) as sdk:
            events = sdk.events(after=seen)
            found = [(await patiently(anext(events))).id for _ in range(len(new))]
            while found[-1] != new[-1]:  # an event that was seen may come again, under its id
                found.append((await patiently(anext(events))).id)
            await events.aclose()
        assert [event for event in found if event in new] == new
        arguments = [application.url, "--url", receiver.url, "--token", TOKEN, "--secret", secret]
        async with listening(tmp_path, *arguments, "--after", str(seen)):
            await eventually(lambda: new[-1] in [event for event, _ in application.events])
        assert [event for event, _ in application.events if event in new] == new
        page = await client.get("/v1/events", params={"after": seen})
        if page.status_code == 409:
            page = await client.get("/v1/events", params={"after": page.json()["resume_after"]})
        assert [item["id"] for item in page.json()["items"] if item["id"] in new] == new


async def done_job(client: httpx.AsyncClient) -> str:
    """The id of a job once all its events are written."""
    job = await submit(client, "pixelcut", picture_bytes(160, 120))
    await wait_for_state(client, job["id"], kept=True)

    async def written() -> bool:
        items = (await client.get("/v1/events", params={"job": job["id"]})).json()["items"]
        return bool(items) and items[-1]["type"] == "job.images_kept"

    await eventually(written)
    return str(job["id"])
