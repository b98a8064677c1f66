"""
Files next to the database: inputs, kept images, large answers. Written to a temporary name, synced, then renamed.

Equal images are stored once: the names of both are links to one file, which is also found by its digest. The file
system counts the links, so the bytes go with the last image. The name by the digest is only a hint for the next equal
image: it may be missing after a crash, and one that is left alone is removed by `drop_unshared`.

With an object store, kept images are objects there and nowhere else; inputs are objects too, and each process fetches
copies of those that it needs. Thumbnails and answers stay with the process that made them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from receiver.store.object_store import ObjectStore
from receiver.store.part_files import PartFiles, PartWriter
from submitter.errors import TaskRefused
from submitter.image_files import magic_type
from submitter.images import inspect
from submitter.threads import in_thread
from submitter.vocabulary import Image, Picture


def open_blobs(data_dir: Path, url: str | None) -> Blobs:
    """Open the files in *data_dir*, or the shared ones in the object store at *url*."""
    return Blobs(data_dir, None if url is None else ObjectStore(url))


@dataclass(frozen=True, slots=True)
class Blobs:
    """
    The files of an installation. *root* is the data directory; names stored in rows are relative to it.

    OSError means that the disk or the object store failed.
    """

    root: Path
    objects: ObjectStore | None = None
    parts: PartFiles = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", PartFiles(self.root))

    def prepare(self) -> None:
        """Create the directories (mode 0700) and remove files that dead processes left half written."""
        for name in ("inputs", "images", "answers"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.parts.claim()

    def close(self) -> None:
        """Release this process's claim: it writes no more files."""
        self.parts.release()

    def new_part(self) -> Path:
        """Return a new temporary path, for a file being written."""
        return self.parts.path()

    def input_path(self, name: str) -> Path:
        return self.root / "inputs" / name

    def image_path(self, job_id: str, n: int) -> Path:
        return self.root / "images" / job_id / str(n)

    def thumbnail_path(self, job_id: str, n: int | None) -> Path:
        """Return the thumbnail's path, next to its source: a result, or the input where *n* is None."""
        return self.root / "thumbnails" / job_id / ("input" if n is None else str(n))

    async def keep_thumbnail(self, part: Path, job_id: str, n: int | None) -> None:
        await asyncio.to_thread(_settle_file, part, self.thumbnail_path(job_id, n))

    async def keep_input(self, part: Path, job_id: str) -> str:
        """Move a complete file into the inputs; returns its name."""
        if self.objects is not None:
            await self.objects.put(f"inputs/{job_id}", part, await asyncio.to_thread(self.content_type, part))
        await asyncio.to_thread(_settle_file, part, self.input_path(job_id))
        return job_id

    async def copy_input(self, name: str, job_id: str) -> str:
        """Give another job the input of a job, without a second copy where the file system supports links."""
        source = await self.input_file(name)
        if self.objects is not None:
            await self.objects.put(f"inputs/{job_id}", source, await asyncio.to_thread(self.content_type, source))
        await asyncio.to_thread(_link, source, self.input_path(job_id))
        return job_id

    async def input_file(self, name: str) -> Path:
        """Return an input as a local file; FileNotFoundError if it is no longer kept."""
        path = self.input_path(name)
        if self.objects is not None and not await asyncio.to_thread(path.is_file):
            await self._fetch(f"inputs/{name}", path)
        elif not await asyncio.to_thread(path.is_file):
            raise FileNotFoundError(errno.ENOENT, "the input is no longer kept")
        return path

    def content_type(self, path: Path) -> str:
        """Return the content type that the first bytes of a file indicate."""
        with path.open("rb") as stream:
            return magic_type(stream.read(64)) or "application/octet-stream"

    async def drop_input(self, name: str) -> None:
        await asyncio.to_thread(self.thumbnail_path(name, None).unlink, missing_ok=True)
        if self.objects is not None:
            await self.objects.delete(f"inputs/{name}")
        await asyncio.to_thread(self.input_path(name).unlink, missing_ok=True)

    def inputs_older_than(self, moment: float) -> list[str]:
        """Names of inputs that were written before *moment* (Unix seconds)."""
        with os.scandir(self.root / "inputs") as entries:
            return sorted(entry.name for entry in entries if entry.stat().st_mtime < moment)

    async def put_body(self, body: bytes) -> str:
        """Keep a large answer; returns its name."""
        name = secrets.token_hex(16)
        await asyncio.to_thread(self._write, body, self.root / "answers" / name)
        return name

    def body_path(self, name: str) -> Path:
        return self.root / "answers" / name

    async def read_body(self, name: str) -> bytes:
        return await asyncio.to_thread(self.body_path(name).read_bytes)

    async def drop_body(self, name: str) -> None:
        await asyncio.to_thread((self.root / "answers" / name).unlink, missing_ok=True)

    async def keep_image(
        self, part: PartWriter, job_id: str, n: int, *, finish: Callable[[], str], size: int
    ) -> Picture:
        """
        Inspect a downloaded file of *size* bytes, and keep it as image *n* of the job.

        *finish* writes the end of it and returns its digest; all that blocks happens in a single call on a thread. This
        consumes the part. Raises `TaskRefused` if it is not a whole image, `OSError` if the file is incomplete.
        """
        if self.objects is None:
            return await in_thread(self._place_image, part, self.image_path(job_id, n), finish, size)
        picture = await in_thread(_inspected, part, finish, size)
        await self.objects.put(_image_key(job_id, n), part.path, picture.content_type)
        await asyncio.to_thread(part.drop)
        return picture

    async def inspect_image(self, job_id: str, n: int) -> Picture:
        """Inspect an image that arrived as bytes, in its place. Raises as `keep_image`, and FileNotFoundError."""
        async with self.image_file(job_id, n) as path:
            picture = await asyncio.to_thread(inspect, path)
            if path == self.image_path(job_id, n):
                await asyncio.to_thread(self._share, path, picture.sha256, picture.size)
            return picture

    async def keep_data(self, job_id: str, n: int, image: Image) -> Image:
        """Keep an image that arrived as bytes. It then has no link, and the archive finds it in place."""
        assert image.data is not None
        part = self.new_part()
        try:
            await asyncio.to_thread(part.write_bytes, image.data)
            await self._keep(part, job_id, n, image.content_type or "application/octet-stream")
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        return replace(image, data=None, url=None)

    async def _keep(self, part: Path, job_id: str, n: int, content_type: str) -> None:
        if self.objects is None:
            await asyncio.to_thread(_settle_file, part, self.image_path(job_id, n))
        else:
            await self.objects.put(_image_key(job_id, n), part, content_type)

    @asynccontextmanager
    async def image_file(self, job_id: str, n: int) -> AsyncIterator[Path]:
        """Provide a kept image as a file while the block runs. Raises FileNotFoundError."""
        key = await self.image_key(job_id, n)
        if self.objects is None or key is None:
            path = self.image_path(job_id, n)
            await asyncio.to_thread(path.stat)
            yield path
            return
        part = self.new_part()
        try:
            await self.objects.fetch(key, part)
            yield part
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)

    async def drop_image(self, job_id: str, n: int) -> None:
        """Remove a kept image and its thumbnail, wherever they are; there may be none."""
        if self.objects is not None:
            await self.objects.delete(_image_key(job_id, n))
        await asyncio.to_thread(_remove, self.image_path(job_id, n), self.thumbnail_path(job_id, n))

    async def drop_unshared(self) -> AsyncGenerator[int, None]:
        """Remove names by digest that no image has any more, a few at a time; yields how many went."""
        for directory in await asyncio.to_thread(_directories, self.root / "digests"):
            yield await asyncio.to_thread(_remove_unshared, directory)

    async def image_key(self, job_id: str, n: int) -> str | None:
        """Return the object store's key of a kept image; None if it is a local file, as images kept earlier are."""
        if self.objects is None or await asyncio.to_thread(self.image_path(job_id, n).is_file):
            return None
        return _image_key(job_id, n)

    async def _fetch(self, key: str, to: Path) -> None:
        assert self.objects is not None
        part = self.new_part()
        try:
            await self.objects.fetch(key, part)
            await asyncio.to_thread(_settle_file, part, to)
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)

    def _place_image(self, part: PartWriter, target: Path, finish: Callable[[], str], size: int) -> Picture:
        picture = _inspected(part, finish, size)
        _place(part.path, target)
        self._share(target, picture.sha256, size)
        return picture

    def _share(self, path: Path, sha256: str, size: int) -> None:
        """Have the kept image at *path* share its bytes with an equal one, or be found by the next."""
        known = self.root / "digests" / sha256[:2] / sha256
        try:
            _link_in(path, known)
            return
        except FileExistsError:
            pass
        except OSError:  # a file system without links: each image has its own bytes
            return
        part = self.new_part()
        try:
            if known.samefile(path):
                return
            if _is_whole(known, sha256, size):
                os.link(known, part)
                part.replace(path)
            else:  # it has rotted, and this one is found by the next instead
                os.link(path, part)
                part.replace(known)
        except OSError:  # the equal one was removed meanwhile, or has as many links as a file may have
            part.unlink(missing_ok=True)

    def _write(self, data: bytes, target: Path) -> None:
        part = self.new_part()
        part.write_bytes(data)
        _settle_file(part, target)


def _inspected(part: PartWriter, finish: Callable[[], str], size: int) -> Picture:
    """Finish *part*, inspect it, and flush it to the disk."""
    sha256 = finish()
    if size == 0:
        raise TaskRefused("the file is empty", field="image", code="not_an_image")
    picture = inspect(part.path, sha256=sha256)
    if picture.size != size:
        raise OSError(errno.EIO, "the file is not as long as what was written")
    part.finish()
    return picture


def _is_whole(path: Path, sha256: str, size: int) -> bool:
    """Return whether *path* still holds the bytes with this digest."""
    if path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _link_in(path: Path, known: Path) -> None:
    """Give *path* the further name *known*, in a directory that may not be there yet."""
    try:
        os.link(path, known)
    except FileNotFoundError:
        known.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.link(path, known)


def _directories(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except FileNotFoundError:
        return []


def _remove_unshared(directory: Path) -> int:
    """Remove the files in *directory* that have no other name. One that gets a name meanwhile keeps that."""
    removed = 0
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if path.stat().st_nlink == 1:
                path.unlink()
                removed += 1
    return removed


def _remove(*paths: Path) -> None:
    """Remove files, and the directories of jobs that this leaves empty."""
    for path in paths:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _image_key(job_id: str, n: int) -> str:
    return f"images/{job_id}/{n}"


def _settle_file(part: Path, target: Path) -> None:
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.chmod(0o600)
    _place(part, target)


def _place(part: Path, target: Path) -> None:
    """Give a file that is on the disk its final name, durably."""
    try:
        part.replace(target)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
