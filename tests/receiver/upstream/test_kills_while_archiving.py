"""
SIGKILL while results are fetched: all are kept in the end, whole, and nothing else lies beside them.

The full form: `ARCHIVE_KILL_ROUNDS=10 ARCHIVE_KILL_IMAGES=200`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from receiver.domain.ids import new_id
from receiver.domain.jobs import Job, Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.store.database import open_database
from receiver.store.jobs import JobStore
from receiver.store.object_store import PART_BYTES, ObjectStore
from receiver.store.settling import JobUpdate
from submitter.vocabulary import Image, Report, State
from tests.support.engines import database_of
from tests.support.object_stores import Bucket, bucket
from tests.support.pictures import chunk, png
from tests.support.processes import LiveReceiver, live
from tests.support.rows import fetch
from tests.support.waiting import eventually

ROUNDS = int(os.environ.get("ARCHIVE_KILL_ROUNDS", 2))
IMAGES = int(os.environ.get("ARCHIVE_KILL_IMAGES", 40))


def picture(name: str) -> bytes:
    """A PNG for each name; one in ten is larger than a part of an upload, and one in ten is equal to another."""
    number_of_round, _, n = name.partition("-")
    name = f"{number_of_round}-{int(n) - 1}" if n.endswith("9") else name
    number = random.Random(name)
    size = PART_BYTES + 1000 if number.random() < 0.1 else number.randrange(1000, 200_000)
    return png(90, 80, extra=chunk(b"teXt", b"name\0" + name.encode() + bytes(size)))


@contextlib.asynccontextmanager
async def slow_host() -> AsyncIterator[str]:
    """Answers `/name` with its picture: half of it, a while later the rest."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = picture(head.split(b" ", 2)[1].decode().strip("/"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[: len(body) // 2])
                await writer.drain()
                await asyncio.sleep(random.random() * 0.1)
                writer.write(body[len(body) // 2 :])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class Wanted:
    """Images that are wanted, and what is known of them in the database of *receiver*."""

    def __init__(self, receiver: LiveReceiver) -> None:
        self._address = database_of(receiver.data_dir)

    async def add(self, urls: Sequence[str]) -> None:
        """One job for each link, succeeded just now."""
        database = await open_database(self._address)
        try:
            store, now = JobStore(database), datetime.now(UTC)
            for url in urls:
                job = Job(new_id("job"), "freepik", State.QUEUED, 1, now, retry_at=now + timedelta(days=1))
                await store.add_job(job)
                update = Update(Report(job.id, State.SUCCEEDED, (Image(url=url),)), Source.RESPONSE)
                await store.settle([JobUpdate(job.id, update)], now, lambda _: Timing(1, 1, 1))
        finally:
            await database.close()

    async def states(self) -> dict[str, str]:
        """The state of each image, by the name of its picture."""
        database = await open_database(self._address)
        try:
            rows = await fetch(database, "SELECT source_url, state FROM images")
        finally:
            await database.close()
        return {url.rpartition("/")[2]: state for url, state in rows}


async def kept_files(receiver: LiveReceiver, made: Bucket | None) -> list[str]:
    """The digests of all that lies where images are kept."""
    if made is None:
        paths = [path for path in (receiver.data_dir / "images").rglob("*") if path.is_file()]
        return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    contents = await made.contents(ObjectStore(made.url))
    return sorted(hashlib.sha256(data).hexdigest() for data in contents.values())


@pytest.mark.slow
@pytest.mark.parametrize("where", ["files", "objects"])
async def test_every_image_is_kept_whole_whenever_the_process_is_killed(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(bucket()) if where == "objects" else None
        environment = {"RECEIVER_BLOB_URL": made.url, **made.environment} if made else {}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        origin = await stack.enter_async_context(slow_host())
        receiver, _ = await stack.enter_async_context(live(tmp_path, environment=environment))
        wanted, names = Wanted(receiver), list[str]()
        for number in range(ROUNDS):
            await receiver.kill()
            fresh = [f"{number}-{n}" for n in range(IMAGES)]
            await wanted.add([f"{origin}/{name}" for name in fresh])
            names += fresh
            before = sum(state == "kept" for state in (await wanted.states()).values())
            await receiver.start()
            enough = before + random.Random(number).randrange(1, IMAGES // 2)

            async def some_kept(enough: int = enough) -> bool:
                return sum(state == "kept" for state in (await wanted.states()).values()) >= enough

            await eventually(some_kept)
            await receiver.kill()
            whole = {hashlib.sha256(picture(name)).hexdigest() for name in names}
            assert set(await kept_files(receiver, made)) <= whole, "what is visible is whole"
        await receiver.start()

        async def all_kept() -> bool:
            states = await wanted.states()
            return len(states) == len(names) and set(states.values()) == {"kept"}

        await eventually(all_kept, seconds=ROUNDS * IMAGES)
        await receiver.kill()
        await receiver.start()  # drops what the dead left half written
        assert await kept_files(receiver, made) == sorted(hashlib.sha256(picture(name)).hexdigest() for name in names)
        assert not list((receiver.data_dir / "parts").iterdir())
        if made is None:
            known = [path for path in (receiver.data_dir / "digests").rglob("*") if path.is_file()]
            assert sorted(path.name for path in known) == sorted(whole), "equal ones are found by their digest"
            assert sum(path.stat().st_nlink - 1 for path in known) == len(names), "and are one file"
