"""
The data directory: created at the first start, for its owner only, and writable.

`DataUnusable` says why the service can't use what is there: the file, what is wrong with it, and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_REMEDY = "name a directory that this user can write to, with RECEIVER_DATA_DIR"


class DataUnusable(Exception):
    """One of our files can't be used. The text is a single line, for people."""

    def __init__(self, path: Path, wrong: str, remedy: str) -> None:
        super().__init__(f"{path}: {wrong}; {remedy}")
        self.path = path
        self.wrong = wrong
        self.remedy = remedy


def prepare(directory: Path) -> None:
    """Create *directory* if missing, and check that it can be written. Raises `DataUnusable`."""
    with usable(directory):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _try(directory)


def check(directory: Path) -> None:
    """Check as `prepare` does, for commands that only read: a missing directory must be possible to create."""
    there = directory
    while not there.exists() and there != there.parent:
        there = there.parent
    with usable(directory):
        if there == directory:
            _try(directory)
        elif not there.is_dir():
            raise NotADirectoryError
        elif not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError


@contextlib.contextmanager
def usable(path: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Turn the operating system's refusals into `DataUnusable`, about *path* where they name no file themselves."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as exc:
        raise DataUnusable(path, "is or lies in a file where a directory is needed", remedy) from exc
    except OSError as exc:
        said = exc.strerror or "permission denied"
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space"
        raise DataUnusable(path, f"can't be written: {said[0].lower()}{said[1:]}", remedy) from exc


def _try(directory: Path) -> None:
    """Create a file without a name: permissions alone don't show that a file system is read-only."""
    with tempfile.TemporaryFile(dir=directory):
        pass
