"""Saving what came out: one file per image, under a name that the input's name predicts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from submitter.commands.connection import CommandFailed, Job, Remote

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


def result_name(stem: str, image: dict[str, Any], n: int, count: int) -> str:
    """`cat.png`; `cat-1.png`, `cat-2.png` where a task has several results."""
    extension = _EXTENSIONS.get(image.get("content_type") or "", "bin")
    return f"{stem}.{extension}" if count == 1 else f"{stem}-{n + 1}.{extension}"


async def save(remote: Remote, job: Job, out: Path, stem: str, *, patience_seconds: float = 300.0) -> list[Path]:
    """Write the images of a succeeded *job* into *out*, each whole or not at all, once the receiver has kept them."""
    await asyncio.to_thread(out.mkdir, parents=True, exist_ok=True)
    paths: list[Path] = []
    count = len(job["images"])
    for n in range(count):
        data = await _kept(remote, job, n, patience_seconds)
        image = (await remote.job(job["id"]))["images"][n]
        path = out / result_name(stem, image, n, count)
        await asyncio.to_thread(_write, path, data)
        paths.append(path)
    return paths


async def _kept(remote: Remote, job: Job, n: int, patience_seconds: float) -> bytes:
    waited, pause = 0.0, 0.2
    while (data := await remote.image(job["id"], n)) is None:
        if waited >= patience_seconds:
            raise CommandFailed(f"{job['id']}: image {n} was not kept within {patience_seconds:g} s")
        await asyncio.sleep(pause)
        waited, pause = waited + pause, min(pause * 1.5, 3.0)
    return data


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
