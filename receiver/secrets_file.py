"""Secrets that nobody set: made once, kept in the data directory, readable by its owner only."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from submitter.signatures import new_secret

_NAME = "secrets.json"


def secrets_path(data_dir: Path) -> Path:
    return data_dir / _NAME


def generated(data_dir: Path) -> dict[str, str]:
    """
    The secrets of this data directory: `secret_key`, `api_token`, `notify_secret`. Makes them on the first call.

    Two processes that start at once agree: the file is written whole beside its place and linked into it, and whoever
    comes second reads what the first one wrote.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = secrets_path(data_dir)
    if not path.exists():
        fresh = {
            "secret_key": secrets.token_urlsafe(32),
            "api_token": secrets.token_urlsafe(32),
            "notify_secret": new_secret(),
        }
        part = data_dir / f".{_NAME}.{secrets.token_hex(4)}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(fresh, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            pass
        finally:
            part.unlink()
    found: dict[str, str] = json.loads(path.read_text())
    return found
