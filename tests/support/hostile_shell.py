"""Lines of `sh` around the programs, and limits that the system sets to them."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable

from tests.support.processes import LiveReceiver
from tests.support.submitter_cli import environment
from tests.support.waiting import patiently


async def in_shell(
    receiver: LiveReceiver, command: str, *, program: str = "submitter", prepare: Callable[[], None] | None = None
) -> tuple[int, str, str]:
    """Run a line of `sh`, in which `$PROGRAM` is the program, as a process whose end is an interpreter's."""
    process = await asyncio.create_subprocess_shell(
        command,
        env={
            **environment(receiver),
            "RECEIVER_DATA_DIR": str(receiver.data_dir),
            "PROGRAM": f"{sys.executable} -m {program}",
        },
        cwd=receiver.data_dir.parent,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=prepare,
    )
    out, err = await patiently(process.communicate())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def files_of(most_bytes: int) -> Callable[[], None]:
    """Limit the size of files: it works as a full disk does, and needs no rights."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return limit
