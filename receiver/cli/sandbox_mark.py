"""
The file by which other commands find a running `serve --sandbox`, and which keeps its jobs apart from paid ones.

`sandbox.json` in the data directory, readable by its owner only. It stays when the sandbox has ended: the jobs of a
sandbox are known to no real provider, and those of real providers to no sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from receiver.settings import SettingsInvalid
from receiver.store.sqlite_file import has_jobs

if sys.platform != "win32":
    import fcntl

_NAME = "sandbox.json"


class SandboxMark:
    """The mark of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _NAME

    @property
    def there(self) -> bool:
        return self._path.exists()

    def read(self) -> dict[str, str] | None:
        """`sandbox` and `receiver`, the origins of a running pair, the one that was started last; None if none runs."""
        running = self._running()
        return {name: running[-1][name] for name in ("sandbox", "receiver")} if running else None

    def check(self, database: Path) -> None:
        """Raises `SettingsInvalid` if *database* holds jobs that no sandbox made, `DataUnusable` if nobody can tell."""
        if not self.there and database.exists() and has_jobs(database):
            raise SettingsInvalid(
                ["RECEIVER_DATA_DIR: holds jobs of real providers; give the sandbox a directory of its own"]
            )

    @contextlib.contextmanager
    def put(self, *, sandbox: str, receiver: str) -> Iterator[None]:
        """Say where the pair is for as long as the block runs, beside others that run on the same directory."""
        own = {"pid": os.getpid(), "sandbox": sandbox, "receiver": receiver}
        with self._alone():
            self._write([*self._running(but=os.getpid()), own])
        try:
            yield
        finally:
            with self._alone():
                self._write(self._running(but=os.getpid()))

    def serves_no_sandbox(self) -> None:
        """This process has none, whatever one with its number did before: in a container that is always 1."""
        if self.there:
            with contextlib.suppress(OSError), self._alone():
                self._write(self._running(but=os.getpid()))

    def _running(self, *, but: int | None = None) -> list[dict[str, Any]]:
        """Whose process still lives: one that was killed could not take its entry out."""
        try:
            found: list[dict[str, Any]] = json.loads(self._path.read_text()).get("running", [])
            whole = [mark for mark in found if {"pid", "sandbox", "receiver"} <= set(mark)]
            return [mark for mark in whole if mark["pid"] != but and _lives(mark["pid"])]
        except (OSError, ValueError, TypeError, AttributeError):
            return []  # not there, not ours to read, or written over; that it is there says what kind of jobs these are

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two that start or stop at once write one after the other."""
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
        """Be there if *other* is, for a copy of its directory; in a copy nothing runs."""
        if other.there:
            self._write([])
        else:
            self._path.unlink(missing_ok=True)

    def _write(self, running: list[dict[str, Any]]) -> None:
        part = self._path.with_name(f".{_NAME}.{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(json.dumps({"running": running} if running else {}))
        part.replace(self._path)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True
