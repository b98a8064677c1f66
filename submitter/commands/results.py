"""Saving what came out: one file per image, under a name that the input's name predicts."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from submitter.commands.connection import CommandFailed
from submitter.errors import SubmitterError
from submitter.printing import say
from submitter.remote import Job, JobImage, Receiver

_EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/tiff": "tiff",
    "image/avif": "avif",
}


def stem_of(image: Path | str) -> str:
    """The name that results of *image* (a path or an address) begin with."""
    name = image.stem if isinstance(image, Path) else Path(unquote(urlsplit(image).path)).stem
    return "".join(char if char.isalnum() or char in "-_. " else "_" for char in name).strip(". ") or "image"


def result_name(stem: str, image: JobImage, n: int, count: int) -> str:
    """`cat.png`; `cat-1.png`, `cat-2.png` where a task has several results."""
    extension = _EXTENSIONS.get(image.content_type or "", "bin")
    return f"{stem}.{extension}" if count == 1 else f"{stem}-{n + 1}.{extension}"


def make_ready(out: Path) -> None:
    """
    Make the directory *out* and see that files can be written there; `CommandFailed` if not.

    To be called before anything is sent: a result that has no place to go is paid for all the same.
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
    """Whatever ends the command in this block names the job and says how to go on: it is sent, and may be paid for."""
    job_id = job if isinstance(job, str) else job.id
    again = f"`submitter wait {job_id}{'' if out is None else f' --out {shlex.quote(str(out))}'}`"
    try:
        yield
    except TimeoutError as exc:
        raise CommandFailed(
            f"{job_id} succeeded, but the receiver has not kept its images in time; fetch them with {again}"
        ) from exc
    except (SubmitterError, OSError) as exc:
        raise CommandFailed(f"{job_id} was sent, but: {exc}; go on with {again}") from exc
    except asyncio.CancelledError:
        say(f"{job_id} was sent; go on with {again}", err=True)
        raise


async def save(receiver: Receiver, job: Job, out: Path, stem: str, *, patience_seconds: float = 300.0) -> list[Path]:
    """
    Write the images of a succeeded *job* into *out*, each whole or not at all, once the receiver has kept them.

    Raises `TimeoutError` if it does not keep them in time.
    """
    pause = 0.1
    async with asyncio.timeout(patience_seconds):
        while not all(image.kept for image in job.images):
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 3.0)
            job = await receiver.job(job)
    await asyncio.to_thread(out.mkdir, parents=True, exist_ok=True)
    paths: list[Path] = []
    for n, image in enumerate(job.images):
        path = out / result_name(stem, image, n, len(job.images))
        await asyncio.to_thread(_write, path, await receiver.image(job, n))
        paths.append(path)
    return paths


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
