"""
Files that results are saved in: `cat.png`, or `cat-1.png`, `cat-2.png` where a job has several.

No result overwrites another file. Where a name holds other content, all of a job's files get the next free one:
`cat_2.png`, or `cat_2-1.png`, `cat_2-2.png`. A file that holds the very image is used again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from submitter.image_files import SUFFIXES
from submitter.sdk.values import JobImage


def free_paths(directory: Path, stem: str, images: Sequence[JobImage]) -> list[Path]:
    """The path of each image in *directory*; what exists at a path is that image. Reads files of those names."""
    for number in itertools.count(1):
        name = stem if number == 1 else f"{stem}_{number}"
        paths = [directory / result_name(name, image, n, len(images)) for n, image in enumerate(images)]
        if all(_is_free(path, image) for path, image in zip(paths, images, strict=True)):
            return paths
    raise AssertionError("unreachable")


def result_name(stem: str, image: JobImage, n: int, count: int) -> str:
    """The name of image *n* (from 0) of *count*."""
    suffix = SUFFIXES.get(image.content_type or "", ".bin")
    return f"{stem}{suffix}" if count == 1 else f"{stem}-{n + 1}{suffix}"


def _is_free(path: Path, image: JobImage) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == image.sha256
    except FileNotFoundError:
        return True
