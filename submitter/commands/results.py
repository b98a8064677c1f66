"""Saving results: one file per image, under a name derived from the input's name."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from submitter import file_names
from submitter.errors import JobFailed, SubmitterError
from submitter.image_files import SUFFIXES
from submitter.printing import CommandFailed, say
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.jobs import require_images
from submitter.sdk.values import Job, JobImage


def stem_of(image: Path | str) -> str:
    """Return the stem of result names for *image* (a path or a URL), short enough for every file system."""
    return file_names.stem_of(image) or "image"


def result_name(stem: str, image: JobImage, n: int, count: int) -> str:
    """Return `cat.png`; `cat-1.png`, `cat-2.png` where a task has several results."""
    extension = SUFFIXES.get(image.content_type or "", ".bin")
    return f"{stem}{extension}" if count == 1 else f"{stem}-{n + 1}{extension}"


def make_ready(out: Path) -> None:
    """
    Create the directory *out* and check that files can be written there; raises `CommandFailed`.

    Call it before anything is sent: a result that can't be saved is paid for anyway.
    """
    try:
        if out.exists() and not out.is_dir():
            raise CommandFailed(f"--out {out} is no directory; name one, or one to be made", status=2)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as exc:
        why = exc.strerror or exc
        raise CommandFailed(
            f"--out {out} can't be written to ({why}); name a directory that can, or one to be made", status=2
        ) from exc


@contextmanager
def naming(job: Job | str, out: Path | None) -> Iterator[None]:
    """Name the job in any error of the block, and say how to go on: it was sent, and may be paid for."""
    job_id = job if isinstance(job, str) else job.id
    again = f"`submitter wait {job_id}{'' if out is None else f' --out {shlex.quote(str(out))}'}`"
    try:
        yield
    except TimeoutError as exc:
        raise CommandFailed(
            f"{job_id} succeeded, but the receiver has not kept its images in time; fetch them with {again}"
        ) from exc
    except JobFailed as exc:
        lost = exc.code == "image_lost"
        remedy = f"; `submitter poll {job_id}` asks the provider for fresh links" if lost else ""
        message = str(exc).removesuffix(f"; {exc.remedy}")
        raise CommandFailed(f"{message}{remedy}", code=exc.code) from exc
    except (SubmitterError, OSError) as exc:
        raise CommandFailed(f"{job_id} was sent, but: {exc}; go on with {again}") from exc
    except asyncio.CancelledError:
        say(f"{job_id} was sent; go on with {again}", err=True)
        raise


async def save(client: AsyncClient, job: Job, out: Path, stem: str, *, patience_seconds: float = 300.0) -> list[Path]:
    """
    Write the images of a succeeded *job* into *out*, each whole or not at all, once the receiver has kept them.

    Never overwrites another result: where `cat.png` is there with other content, this one is `cat_2.png`. Raises
    `JobFailed` as soon as an image is known to be lost, `TimeoutError` if they are not kept in time.
    """
    pause = 0.1
    async with asyncio.timeout(patience_seconds):
        while True:
            require_images(job)
            if all(image.kept for image in job.images):
                break
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 3.0)
            job = await client.job(job)
    await asyncio.to_thread(out.mkdir, parents=True, exist_ok=True)
    paths = await asyncio.to_thread(_free_paths, out, stem, job)
    for n, path in enumerate(paths):
        if not await asyncio.to_thread(path.exists):  # an existing file is this very image
            await asyncio.to_thread(_write, path, await client.image(job, n))
    return paths


def _free_paths(out: Path, stem: str, job: Job) -> list[Path]:
    """Return paths for the job's images: with the first of `stem`, `stem_2`, … that holds nothing else."""
    for number in itertools.count(1):
        name = stem if number == 1 else f"{stem}_{number}"
        paths = [out / result_name(name, image, n, len(job.images)) for n, image in enumerate(job.images)]
        if all(_is_free(path, image) for path, image in zip(paths, job.images, strict=True)):
            return paths
    raise AssertionError("unreachable")


def _is_free(path: Path, image: JobImage) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == image.sha256
    except FileNotFoundError:
        return True


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
