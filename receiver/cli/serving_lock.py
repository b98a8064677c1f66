"""
Whether another living process serves a data directory.

Whoever serves it holds a lock on a file there, shared with all others who do; who can have it alone for a moment is the
only one. The kernel takes it back at any end, SIGKILL included, and the file says nothing by being there. It forbids
nothing: several processes may share a database, but a person should know that they do.
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
    """Count among those who serve *data_dir* while the block runs; gives whether somebody else did already."""
    try:
        descriptor = os.open(data_dir / _NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # it may be another user's, of an earlier life: nobody can tell
        descriptor = None
    if descriptor is None:
        yield False
        return
    try:
        yield _others(descriptor)
    finally:
        os.close(descriptor)


def _others(descriptor: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        others = False
    except BlockingIOError:
        others = True
    except OSError:  # a file system without locks: nobody can tell
        return False
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return others
