"""Equal images are stored once, and their bytes go with the last of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.jobs import Job
from receiver.store.blobs import Blobs
from receiver.store.codecs import us
from receiver.store.database import Database, open_database
from receiver.store.jobs import JobStore
from receiver.store.part_files import PartWriter
from receiver.store.retention import Pruned, Pruning, Retention
from submitter.vocabulary import Image, State
from tests.support.engines import database_of
from tests.support.pictures import png
from tests.support.rows import execute

PICTURE, OTHER = png(40, 30), png(41, 30)
NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=31)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    made = Blobs(tmp_path)
    made.prepare()
    return made


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Any]:
    made = await open_database(database_of(tmp_path))
    yield made
    await made.close()


async def keep(blobs: Blobs, job_id: str, n: int = 0, *, data: bytes = PICTURE) -> None:
    """As the archive keeps a download."""
    part = PartWriter(blobs.new_part())

    def finish() -> str:
        part.write(data)
        return hashlib.sha256(data).hexdigest()

    await blobs.keep_image(part, job_id, n, finish=finish, size=len(data))


def stored(root: Path) -> list[int]:
    """The sizes of all distinct files of the data directory in which pictures may be."""
    files = [path for name in ("images", "digests", "parts") for path in (root / name).rglob("*") if path.is_file()]
    return sorted({path.stat().st_ino: path.stat().st_size for path in files}.values())


async def sweep(blobs: Blobs) -> int:
    return sum([removed async for removed in blobs.drop_unshared()])


async def test_equal_images_are_stored_once_and_others_apart(blobs: Blobs, tmp_path: Path) -> None:
    await keep(blobs, "job_a")
    await keep(blobs, "job_a", 1)
    await keep(blobs, "job_b")
    await keep(blobs, "job_c", data=OTHER)
    await keep(blobs, "job_a")  # once more, as after a lost copy
    assert stored(tmp_path) == sorted([len(PICTURE), len(OTHER)])
    for job_id, n, data in (("job_a", 0, PICTURE), ("job_a", 1, PICTURE), ("job_b", 0, PICTURE), ("job_c", 0, OTHER)):
        assert blobs.image_path(job_id, n).read_bytes() == data
        assert blobs.image_path(job_id, n).stat().st_mode & 0o777 == 0o600


async def test_an_image_that_came_as_bytes_shares_too(blobs: Blobs, tmp_path: Path) -> None:
    await keep(blobs, "job_a")
    await blobs.keep_data("job_b", 0, Image(data=PICTURE))
    picture = await blobs.inspect_image("job_b", 0)
    assert (picture.width, picture.size) == (40, len(PICTURE))
    assert stored(tmp_path) == [len(PICTURE)]


async def test_equal_images_that_end_together_are_stored_once(blobs: Blobs, tmp_path: Path) -> None:
    await asyncio.gather(*(keep(blobs, f"job_{n}") for n in range(20)))
    assert stored(tmp_path) == [len(PICTURE)]
    assert all(blobs.image_path(f"job_{n}", 0).read_bytes() == PICTURE for n in range(20))


async def test_the_bytes_go_with_the_last_image_and_no_sooner(blobs: Blobs, tmp_path: Path) -> None:
    await keep(blobs, "job_a")
    await keep(blobs, "job_b")
    await blobs.drop_image("job_a", 0)
    assert await sweep(blobs) == 0
    assert blobs.image_path("job_b", 0).read_bytes() == PICTURE
    await blobs.drop_image("job_b", 0)
    assert await sweep(blobs) == 1
    assert stored(tmp_path) == []


async def test_an_image_kept_while_the_sweep_runs_has_its_bytes(blobs: Blobs, tmp_path: Path) -> None:
    for number in range(30):
        await keep(blobs, "job_a")
        await blobs.drop_image("job_a", 0)
        await asyncio.gather(sweep(blobs), keep(blobs, f"job_{number}", data=PICTURE), sweep(blobs))
        assert blobs.image_path(f"job_{number}", 0).read_bytes() == PICTURE
        await blobs.drop_image(f"job_{number}", 0)
    await sweep(blobs)
    assert stored(tmp_path) == []


@pytest.mark.parametrize("found", [b"cut", bytes(len(PICTURE))], ids=["cut", "of the same length"])
async def test_another_file_under_the_digest_is_not_trusted(found: bytes, blobs: Blobs, tmp_path: Path) -> None:
    await keep(blobs, "job_a")
    (known,) = (path for path in (tmp_path / "digests").rglob("*") if path.is_file())
    known.unlink()
    known.write_bytes(found)
    for job_id in ("job_b", "job_c"):
        await keep(blobs, job_id)
        assert blobs.image_path(job_id, 0).read_bytes() == PICTURE
    assert known.samefile(blobs.image_path("job_b", 0))
    assert known.samefile(blobs.image_path("job_c", 0))


async def test_without_links_each_image_has_its_own_bytes(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "digests").write_bytes(b"no directory, so nothing can be linked there")
    await keep(blobs, "job_a")
    await keep(blobs, "job_b")
    assert [blobs.image_path(job_id, 0).read_bytes() for job_id in ("job_a", "job_b")] == [PICTURE] * 2
    assert [path for path in (tmp_path / "parts").iterdir() if path.is_file()] == []


async def test_pruning_frees_the_bytes_of_the_last_image(blobs: Blobs, database: Database, tmp_path: Path) -> None:
    store = JobStore(database)
    retention = Retention(timedelta(days=60), images=timedelta(days=30))
    for job_id, kept_at in (("job_old", OLD), ("job_young", NOW)):
        await store.add_job(Job(job_id, "freepik", version=1, created_at=OLD, state=State.SUCCEEDED, finished_at=OLD))
        row = (job_id, us(kept_at))
        await execute(
            database, "INSERT INTO images (job_id, n, state, tries, kept_at) VALUES (?, 0, 'kept', 1, ?)", *row
        )
        await keep(blobs, job_id)
    assert await Pruning(database, blobs, keep=retention).prune() == Pruned(images=1)
    assert stored(tmp_path) == [len(PICTURE)] and os.listdir(tmp_path / "images") == ["job_young"]
    await execute(database, "UPDATE images SET kept_at = ? WHERE job_id = 'job_young'", us(OLD))
    assert await Pruning(database, blobs, keep=retention).prune() == Pruned(images=1)
    assert stored(tmp_path) == []
