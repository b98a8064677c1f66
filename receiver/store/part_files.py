"""
Files being written into the data directory, each owned by a process.

A part's name begins with its owner: a random name of the process, which holds a lock on a file of that name for as long
as it lives. The kernel releases that lock at any exit, SIGKILL included. So a process that starts on the same directory
removes what dead ones left half written, and touches nothing that is still being written.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import secrets
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class PartFiles:
    """The parts of this process. `claim` before the first `path`; `release` when no more are written."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "parts"
        self._owners = root / "writers"
        self._owner = secrets.token_hex(12)
        self._numbers = itertools.count()
        self._lock: int | None = None

    def path(self) -> Path:
        """Return a new path for a file to write."""
        return self._directory / f"{self._owner}-{next(self._numbers)}"

    def claim(self) -> None:
        """Create the directories, take this process's lock, and remove the parts of processes that are gone."""
        for directory in (self._directory, self._owners):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        starting = os.open(self._owners, os.O_RDONLY)
        try:
            _lock(starting)  # until this one is registered, no other may take its file for a dead one's
            self._lock = os.open(self._owners / self._owner, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(self._lock)
            alive = {owner.name for owner in self._owners.iterdir() if owner.name == self._owner or _is_alive(owner)}
            for part in self._directory.iterdir():
                if part.name.partition("-")[0] not in alive:
                    part.unlink(missing_ok=True)
        finally:
            os.close(starting)

    def release(self) -> None:
        """Give up the lock, and drop what is left: nothing of this process is written any more."""
        if self._lock is not None:
            for part in self._directory.glob(f"{self._owner}-*"):
                part.unlink(missing_ok=True)
            os.close(self._lock)
            (self._owners / self._owner).unlink(missing_ok=True)
            self._lock = None


class PartWriter:
    """A part while it is written, readable by its owner only. Created at the first write; all methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = None
        self._begun = False

    def write(self, data: bytes) -> None:
        if self._file is None:
            self._open()
        assert self._file is not None
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]

    def pause(self) -> None:
        """Close the file; it may be written on later."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def restart(self) -> None:
        """Throw away what was written."""
        if self._begun:
            os.truncate(self.path, 0)
            self.pause()

    def finish(self) -> None:
        """Flush all of it to the disk."""
        if self._file is None and self._begun:
            self._open()
        if self._file is not None:
            with self._file:
                os.fsync(self._file.fileno())

    def _open(self) -> None:
        self._file = io.FileIO(self.path, "ab" if self._begun else "xb", opener=_owners_only)
        self._begun = True

    def drop(self) -> None:
        """Remove the file, if it is still there."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


def _owners_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a file system without locks: every process is assumed to live
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_alive(owner: Path) -> bool:
    """Return whether the process of *owner*'s file lives; remove a dead one's file."""
    if sys.platform == "win32":
        return True
    try:
        descriptor = os.open(owner, os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner.unlink(missing_ok=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
