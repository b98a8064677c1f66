"""
A lock that shows whether another living process serves a data directory.

Every process that serves it holds a shared lock on a file there; a process that can briefly hold it exclusively is
alone. The kernel releases it at any exit, SIGKILL included, and the file's existence means nothing. Servers are never
refused: several may share a database, but an operator should know that they do. `alone` is for commands that must not
run alongside a server: a server that starts meanwhile waits for their end.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_NAME = "serving.lock"


@contextlib.contextmanager
def occupied(data_dir: Path) -> Iterator[bool]:
    """Count as a process that serves *data_dir* while the block runs; yields whether another one does already."""
    try:
        descriptor = os.open(data_dir / _NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # left over from another user: nothing is known
        descriptor = None
    if descriptor is None:
        yield False
        return
    try:
        yield _others(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(data_dir: Path) -> Iterator[bool]:
    """Hold *data_dir* exclusively while the block runs, if no process serves it; yields whether it is held."""
    descriptor = os.open(data_dir / _NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield _exclusive(descriptor)
    finally:
        os.close(descriptor)


def _exclusive(descriptor: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: nothing is known
            pass
    return True


def _others(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        others = False
    except BlockingIOError:
        others = True
    except OSError:  # a file system without locks: nothing is known
        return False
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return others
