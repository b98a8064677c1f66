"""Lines of `sh` around the programs, and limits that the system sets to them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping

from tests.support.processes import LiveReceiver
from tests.support.submitter_cli import environment
from tests.support.waiting import patiently


async def in_shell(
    receiver: LiveReceiver, command: str, *, program: str = "submitter", prepare: Callable[[], None] | None = None
) -> tuple[int, str, str]:
    """Run a line of `sh`, in which `$PROGRAM` is the program, as a process whose end is an interpreter's."""
    process = await asyncio.create_subprocess_shell(
        command,
        env=_environment(receiver, program),
        cwd=receiver.data_dir.parent,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=prepare,
    )
    out, err = await patiently(process.communicate())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """A line of `bash` with job control, at a terminal where keys are pressed."""

    def __init__(self, receiver: LiveReceiver, command: str, *, program: str = "submitter") -> None:
        self._screen, terminal = os.openpty()
        self.shown = ""
        self._shell = subprocess.Popen(
            ["bash", "-m", "-c", command],
            env=_environment(receiver, program),
            cwd=receiver.data_dir.parent,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)

    async def until(self, text: str) -> None:
        """Wait until *text* is on the screen."""
        while text not in self.shown:
            read = await patiently(asyncio.to_thread(self._read))
            assert read, self.shown
            self.shown += read

    def press(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    async def end(self) -> int:
        """Wait for the end of the shell, and return its exit status."""
        while read := await patiently(asyncio.to_thread(self._read)):
            self.shown += read
        os.close(self._screen)
        return await patiently(asyncio.to_thread(self._shell.wait))

    def _read(self) -> str:
        try:
            return os.read(self._screen, 65536).decode("utf-8", "replace")
        except OSError:  # Linux says so that the other end is closed
            return ""


def files_of(most_bytes: int) -> Callable[[], None]:
    """Limit the size of files: it works as a full disk does, and needs no rights."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return limit


def _environment(receiver: LiveReceiver, program: str) -> Mapping[str, str]:
    return {
        **environment(receiver),
        "RECEIVER_DATA_DIR": str(receiver.data_dir),
        "PROGRAM": f"{sys.executable} -m {program}",
    }
