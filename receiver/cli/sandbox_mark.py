"""
The file through which other commands find a running `serve --sandbox`, and which keeps its jobs apart from paid ones.

`sandbox.json` in the data directory, readable by its owner only. It stays after the sandbox has ended: no real provider
knows the jobs of a sandbox, and no sandbox those of real providers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from receiver.runtime.data_dir import DataUnusable, usable
from receiver.settings import SettingsInvalid
from receiver.store.sqlite_file import has_jobs
from submitter.whole_files import write_whole

if sys.platform != "win32":
    import fcntl

_NAME = "sandbox.json"


class SandboxMark:
    """The mark of a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _NAME

    @property
    def there(self) -> bool:
        return self._path.exists()

    def read(self) -> dict[str, str] | None:
        """Return `sandbox` and `receiver`, the origins of the running pair that was started last, or None."""
        running = self._running()
        return {name: running[-1][name] for name in ("sandbox", "receiver")} if running else None

    def check(self, database: Path) -> None:
        """Raise `SettingsInvalid` if *database* holds jobs that no sandbox made, `DataUnusable` if it can't be read."""
        if not self.there and database.exists() and has_jobs(database):
            raise SettingsInvalid(
                ["RECEIVER_DATA_DIR: holds jobs of real providers; give the sandbox a directory of its own"]
            )

    @contextlib.contextmanager
    def put(self, *, sandbox: str, receiver: str) -> Iterator[None]:
        """List the pair in the file while the block runs, along with others on the same directory."""
        own = {"pid": os.getpid(), "sandbox": sandbox, "receiver": receiver}
        with self._alone():
            self._write([*self._running(but=os.getpid()), own])
        try:
            yield
        finally:
            with contextlib.suppress(OSError, DataUnusable), self._alone():  # who has ended is not taken for running
                self._write(self._running(but=os.getpid()))

    def serves_no_sandbox(self) -> None:
        """Remove an entry with this process's id, left by an earlier one: in a container the id is always 1."""
        if self.there:
            with contextlib.suppress(OSError, DataUnusable), self._alone():
                self._write(self._running(but=os.getpid()))

    def _running(self, *, but: int | None = None) -> list[dict[str, Any]]:
        """Return the entries of living processes: a killed one could not remove its entry."""
        try:
            found: list[dict[str, Any]] = json.loads(self._path.read_text()).get("running", [])
            whole = [mark for mark in found if {"pid", "sandbox", "receiver"} <= set(mark)]
            return [mark for mark in whole if mark["pid"] != but and _lives(mark["pid"])]
        except (OSError, ValueError, TypeError, AttributeError):
            return []  # missing, unreadable or overwritten; the file's existence alone marks the jobs as a sandbox's

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold a lock, so that processes that start or stop at once write one after the other."""
        if sys.platform == "win32":
            yield
            return
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def follow(self, other: SandboxMark) -> None:
        """Create the mark if *other* exists, for a copy of its directory, in which nothing runs."""
        if other.there:
            self._write([])
        else:
            self._path.unlink(missing_ok=True)

    def _write(self, running: list[dict[str, Any]]) -> None:
        with usable(self._path):
            write_whole(self._path, json.dumps({"running": running} if running else {}), mode=0o600)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process
    return True
