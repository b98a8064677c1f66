"""Thumbnails: made by separate processes, a few at a time, each bounded in memory and time."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from receiver.runtime.thumbnail_process import TOO_LARGE

SIDE = 512
_WALL_SECONDS = 60.0
_SCRIPT = Path(__file__).with_name("thumbnail_process.py")


class NoThumbnail(Exception):
    """There is no thumbnail of this picture. `too_large`: decoding it would take too much memory or time."""

    def __init__(self, *, too_large: bool) -> None:
        super().__init__("too large" if too_large else "not decodable")
        self.too_large = too_large


class Thumbnails:
    """Makes thumbnails, *concurrency* at once; further ones wait."""

    def __init__(self, *, concurrency: int = 2) -> None:
        self._places = asyncio.Semaphore(concurrency)

    async def make(self, source: Path, target: Path) -> None:
        """
        Write a WEBP thumbnail of *source* to *target*; raises `NoThumbnail`, and then leaves no *target*.

        The process has an empty environment, without our secrets.
        """
        async with self._places:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(_SCRIPT),
                str(source),
                str(target),
                str(SIDE),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env={},
                close_fds=True,
            )
            try:
                status = await asyncio.wait_for(process.wait(), _WALL_SECONDS)
            except TimeoutError:
                status = TOO_LARGE
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        if status != 0:
            await asyncio.to_thread(target.unlink, missing_ok=True)
            raise NoThumbnail(too_large=status == TOO_LARGE or status < 0)  # below 0: a limit of the system ended it
