"""`submitter` in a process of its own, against a live receiver."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support import forking
from tests.support.cli import Done
from tests.support.processes import ROOT, TOKEN, LiveReceiver


def environment(receiver: LiveReceiver) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUBMITTER_")}
    return {**kept, "PYTHONPATH": str(ROOT), "SUBMITTER_RECEIVER_URL": receiver.url, "SUBMITTER_TOKEN": TOKEN}


async def started(
    receiver: LiveReceiver, *arguments: str, program: str = "submitter", **more: str
) -> asyncio.subprocess.Process:
    """The running command."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"from {program}.cli import main; main()",
        *arguments,
        env={**environment(receiver), **more},
        cwd=receiver.data_dir.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def submitter(receiver: LiveReceiver, *arguments: str, **more: str) -> Done:
    """Run a command to its end."""
    given = {**environment(receiver), **more}
    status, out, err = await forking.run("submitter", *arguments, environment=given, directory=receiver.data_dir.parent)
    return Done(status, out.decode(), err.decode())


def pictures(directory: Path, count: int, data: bytes) -> None:
    """*count* images that differ by a few bytes behind the picture."""
    directory.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (directory / f"photo-{n:03}.jpg").write_bytes(data + n.to_bytes(4, "big"))
