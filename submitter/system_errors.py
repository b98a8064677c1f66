"""The operating system's refusals in words: the file, what is wrong, and what to change."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "the whole system has too many open files",
    errno.EROFS: "name a place that can be written to",
}
_OF_WHAT_IS_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""In a copy, these are about the second of its files."""


def described(exc: BaseException) -> str:
    """Return an OSError as `file: what is wrong; what to change`, as far as each is known, any other as it is."""
    if not isinstance(exc, OSError) or not exc.strerror:
        return str(exc)
    said = exc.strerror[0].lower() + exc.strerror[1:] if exc.strerror[1:2].islower() else exc.strerror
    files = [os.fsdecode(file) for file in (exc.filename, exc.filename2) if isinstance(file, str | bytes | os.PathLike)]
    if exc.errno in _OF_WHAT_IS_WRITTEN:
        files = files[-1:]
    remedy = _REMEDIES.get(exc.errno or 0)
    return "".join(f"{file}: " for file in [" to ".join(files)] if file) + said + (f"; {remedy}" if remedy else "")


@contextlib.contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name *path* in an error of the block that names no file, as those of writing and syncing don't."""
    try:
        yield
    except OSError as exc:
        if exc.filename is not None or exc.errno is None:
            raise
        raise OSError(exc.errno, exc.strerror, os.fspath(path)) from exc
