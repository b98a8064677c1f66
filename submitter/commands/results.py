"""Saving what came out: one file per image, under a name that the input's name predicts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
