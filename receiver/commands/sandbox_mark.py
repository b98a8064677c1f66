"""
The file by which other commands find a running `serve --sandbox`, and which keeps its jobs apart from paid ones.

`sandbox.json` in the data directory, readable by its owner only. It stays when the sandbox has ended: the jobs of a
sandbox are known to no real provider, and those of real providers to no sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from receiver.settings import SettingsInvalid

_NAME = "sandbox.json"


class SandboxMark:
    """The mark of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _NAME

    @property
    def there(self) -> bool:
        return self._path.exists()

    def read(self) -> dict[str, str] | None:
        """`sandbox` and `receiver`, the origins of a running pair; None if none runs."""
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        return found if found.get("sandbox") else None

    def check(self, database: Path) -> None:
        """Raises `SettingsInvalid` if *database* holds jobs that no sandbox made."""
        if not self.there and database.exists() and _has_jobs(database):
            raise SettingsInvalid(
                ["RECEIVER_DATA_DIR: holds jobs of real providers; give the sandbox a directory of its own"]
            )

    @contextlib.contextmanager
    def put(self, *, sandbox: str, receiver: str) -> Iterator[None]:
        """Say where the pair is for as long as the block runs."""
        self._write({"sandbox": sandbox, "receiver": receiver})
        try:
            yield
        finally:
            self._write({})

    def _write(self, content: dict[str, str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self._path.with_name(f".{_NAME}.{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(json.dumps(content))
        part.replace(self._path)


def _has_jobs(database: Path) -> bool:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT 1 FROM jobs LIMIT 1").fetchone() is not None
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
