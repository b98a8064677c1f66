"""Files that are written whole or not at all: a full disk or a kill leaves what was there before."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, text: str, *, mode: int = 0o666, replace: bool = True) -> None:
    """
    Write *path*, synced; where it is a symbolic link, what that leads to. Raises OSError, which names *path*;
    FileExistsError if it exists and may not be replaced.
    """
    target = Path(os.path.realpath(path)) if replace else path
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                part.replace(target)
            else:
                os.link(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
