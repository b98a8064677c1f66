"""
An object store (S3, GCS, Azure) for kept images and inputs, through obstore (the extra `s3`).

An object is visible only when it is whole: uploads of several parts become an object when they are completed. Images
are inspected and digested as local files before the upload, and their size is checked after it. Credentials come from
the standard environment variables (`AWS_…`, `GOOGLE_…`, `AZURE_…`) or from the machine's role.

Raises OSError and nothing else, with a message that names neither keys nor addresses.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger("receiver.objects")

PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 2
_CHECK_SECONDS = 10.0
_READ_BYTES = 1 << 20


class ObjectStore:
    """The objects under *url*, such as `s3://bucket/prefix`. Keys are paths relative to it."""

    def __init__(self, url: str) -> None:
        try:
            from obstore.store import from_url
        except ImportError as exc:
            raise ValueError("RECEIVER_BLOB_URL needs obstore; install the extra `s3`") from exc
        with _as_os_error():
            self._store: Any = from_url(url)

    async def check(self) -> None:
        """Raise OSError if the store can't be read."""
        with _as_os_error():
            async for _ in self._store.list(prefix="images", chunk_size=1):
                break

    async def put(self, key: str, source: Path, content_type: str) -> None:
        """Upload *source*, streamed in parts of `PART_BYTES`, replacing an existing object."""
        with _as_os_error():
            with await asyncio.to_thread(source.open, "rb") as file:
                size = (await asyncio.to_thread(source.stat)).st_size
                await self._store.put_async(
                    key,
                    file,
                    attributes={"Content-Type": content_type},
                    chunk_size=PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )
            if await self.size(key) != size:
                raise OSError(errno.EIO, "the object store holds another number of bytes than it was sent")

    async def size(self, key: str) -> int:
        """Return the size of an object in bytes; FileNotFoundError if there is none."""
        with _as_os_error():
            return int((await self._store.head_async(key))["size"])

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of an object from *start* up to *end*, in pieces."""
        with _as_os_error():
            end = await self.size(key) if end is None else end
            if start >= end:
                return
            found = await self._store.get_async(key, options={"range": (start, end)})
            async for piece in found.stream(min_chunk_size=_READ_BYTES):
                yield bytes(piece)

    async def fetch(self, key: str, to: Path) -> None:
        """Write an object into the file *to*."""
        with await asyncio.to_thread(to.open, "wb") as file:
            async for piece in self.read(key):
                await asyncio.to_thread(file.write, piece)

    async def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        with _as_os_error():
            try:
                await self._store.delete_async(key)
            except FileNotFoundError:
                pass

    async def keys(self, prefix: str) -> list[str]:
        """The keys of all objects under *prefix*."""
        found: list[str] = []
        with _as_os_error():
            async for batch in self._store.list(prefix=prefix):
                found += [str(entry["path"]) for entry in batch]
        return found

    async def signed_url(self, key: str, *, lifetime: timedelta) -> str:
        """Return a link that reads an object for *lifetime*, without further credentials."""
        import obstore

        with _as_os_error():
            return str(await obstore.sign_async(self._store, "GET", key, lifetime))


async def warn_if_unreachable(objects: ObjectStore) -> None:
    """Log a warning at start if the store can't be read; it may be reachable later, so nothing is refused."""
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await objects.check()
    except (OSError, TimeoutError) as exc:
        log.error(
            "object_store_unreachable",
            reason=str(exc) or "no answer in time",
            remedy="check RECEIVER_BLOB_URL and the store's credentials and region",
        )


@contextmanager
def _as_os_error() -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as exc:
        raise FileNotFoundError(errno.ENOENT, "the object store has no such object") from exc
    except BaseError as exc:
        kind = type(exc).__name__.removesuffix("Error")
        raise OSError(errno.EIO, f"the object store failed ({kind})") from exc
