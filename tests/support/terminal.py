"""`receiver` and `submitter` on a terminal, as wide as is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Mapping
from pathlib import Path

from tests.support import forking
from tests.support.waiting import patiently


async def on_terminal(
    program: forking.Program, *arguments: str, environment: Mapping[str, str], directory: Path, columns: int = 80
) -> tuple[int, str]:
    """The exit status of *program*, and what its terminal of so many *columns* was sent."""
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    given = {**environment, "COLUMNS": str(columns), "TERM": "dumb"}
    with os.fdopen(terminal, "wb") as out:
        process = await forking.fork(program, *arguments, environment=given, directory=directory, out=out, err=out)
    shown = await patiently(asyncio.to_thread(_read_all, screen))
    return await patiently(process.wait()), shown


def _read_all(screen: int) -> str:
    """Read everything that is written until the other end is closed."""
    parts = []
    with contextlib.suppress(OSError):  # Linux says so that it is
        while part := os.read(screen, 65536):
            parts.append(part)
    os.close(screen)
    return b"".join(parts).decode("utf-8", "replace")
