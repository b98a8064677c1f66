"""The files of a data directory, copied into the object store that is to hold them from now on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from receiver.store.blobs import Blobs

_AT_ONCE = 16


async def upload_files(blobs: Blobs) -> int:
    """
    Copy all inputs and kept images of *blobs* to its object store; returns how many files are there.

    An object of the same size is not sent again, so that an upload that was interrupted continues. Changes nothing in
    the data directory. Raises OSError.
    """
    assert blobs.objects is not None
    waiting = await asyncio.to_thread(lambda: list(_files(blobs.root)))
    count = len(waiting)

    async def worker() -> None:
        while waiting:
            await _upload(blobs, *waiting.pop())

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(worker())
    except* OSError as failures:
        raise failures.exceptions[0] from None
    return count


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Each file with its key."""
    for kind in ("inputs", "images"):
        for path in sorted((root / kind).rglob("*")):
            if path.is_file():
                yield path.relative_to(root).as_posix(), path


async def _upload(blobs: Blobs, key: str, path: Path) -> None:
    assert blobs.objects is not None
    try:
        there: int | None = await blobs.objects.size(key)
    except FileNotFoundError:
        there = None
    if there != (await asyncio.to_thread(path.stat)).st_size:
        await blobs.objects.put(key, path, await asyncio.to_thread(blobs.content_type, path))
