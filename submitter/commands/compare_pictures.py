"""The pictures of a comparison: how sharp they are beside the input, and how the report shows them."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitter.image_files import magic_type

_SHOWN_BY_BROWSERS = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif"})
_LARGEST_EMBEDDED_BYTES = 6 << 20
_SCRIPT = Path(__file__).with_name("compare_process.py")
_WALL_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Appearance:
    """
    A picture's sharpness, relative to the input's (1.0), and how the report shows it.

    `sharpness` is None where it can't be measured. `uri` is a `data:` URI of the picture, or of a smaller copy of it
    (`reduced`); None where it can't be shown.
    """

    sharpness: float | None = None
    uri: str | None = None
    reduced: bool = False


async def appearances(
    image: Path, results: Sequence[Path | None], sizes: Sequence[tuple[int, int] | None]
) -> list[Appearance]:
    """
    The appearance of *image* and of each of *results*, in that order; *sizes* are those of the results in pixels.

    All are measured at the size of the smallest result. One process at a time decodes one picture.
    """
    known = [size for size, path in zip(sizes, results, strict=True) if size is not None and path is not None]
    width, height = min(known, key=lambda size: size[0] * size[1], default=(0, 0))
    found = []
    with tempfile.TemporaryDirectory(prefix="submitter-compare-") as directory:
        for path in (image, *results):
            found.append(Appearance() if path is None else await _appearance(path, width, height, Path(directory)))
    reference = found[0].sharpness
    return [
        Appearance(
            each.sharpness / reference if each.sharpness is not None and reference else None, each.uri, each.reduced
        )
        for each in found
    ]


async def _appearance(path: Path, width: int, height: int, directory: Path) -> Appearance:
    """An appearance whose sharpness is the variance itself."""
    preview = None if await asyncio.to_thread(_is_embeddable, path) else directory / "preview.webp"
    sharpness = await _measured(path, width, height, preview)
    shown = path if preview is None else preview
    return Appearance(sharpness, await asyncio.to_thread(_data_uri, shown), reduced=preview is not None)


async def _measured(path: Path, width: int, height: int, preview: Path | None) -> float | None:
    """Measure in a process of its own with an empty environment; None if it can't be done within its limits."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(_SCRIPT),
        *(str(path), str(width), str(height)),
        *([] if preview is None else [str(preview)]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), _WALL_SECONDS)
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        value = json.loads(out)
    except ValueError:
        return None
    return value if isinstance(value, float) else None


def _is_embeddable(path: Path) -> bool:
    with path.open("rb") as file:
        return magic_type(file.read(64)) in _SHOWN_BY_BROWSERS and path.stat().st_size <= _LARGEST_EMBEDDED_BYTES


def _data_uri(path: Path) -> str | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return f"data:{magic_type(data[:64])};base64,{base64.b64encode(data).decode('ascii')}"
