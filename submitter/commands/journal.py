"""
The journal of a batch, next to its results, so that the same command goes on after an interruption.

A line is written and synced before an image is sent, with its Idempotency-Key, and another when its job is known.
After a crash in between, the next run sends it again under the same key, and the receiver answers with the same job. An
incomplete line after a crash is dropped. Only one run at a time holds the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from submitter.commands.connection import CommandFailed
from submitter.system_errors import about

if sys.platform != "win32":
    import fcntl

_KEPT_SECONDS = 23 * 3600.0
"""The receiver knows a key for 24 hours."""


@dataclass(slots=True)
class Entry:
    """The record of one item. `again` counts how often it was sent again because it had failed."""

    key: str = ""
    intended_at: float = 0.0
    job: str | None = None
    state: str | None = None
    again: int = 0
    saved: tuple[str, ...] = ()


class Journal:
    """`with Journal(path) as journal:`; entries are found under their item's name."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.batch = secrets.token_hex(8)
        self.entries: dict[str, Entry] = {}
        self._clock = clock
        self._file: FileIO | None = None
        self._writing = threading.Lock()

    def entry(self, name: str) -> Entry:
        return self.entries.setdefault(name, Entry())

    def intends(self, name: str, key: str) -> None:
        """Record, synced, that *name* is about to be sent under *key*: from now on it may have been sent."""
        entry = self.entry(name)
        if entry.key == key and entry.job is None and self._clock() - entry.intended_at > _KEPT_SECONDS:
            raise CommandFailed(
                "it was sent more than a day ago and not acknowledged; see the receiver's jobs, then use --again"
            )
        if entry.key != key:
            entry.key, entry.job, entry.state, entry.saved = key, None, None, ()
            entry.intended_at = self._clock()
            self._write({"name": name, "key": key, "at": entry.intended_at, "again": entry.again}, sync=True)

    def sent(self, name: str, job: str) -> None:
        self.entry(name).job = job
        self._write({"name": name, "job": job})

    def ended(self, name: str, state: str, saved: tuple[str, ...] = ()) -> None:
        entry = self.entry(name)
        entry.state, entry.saved = state, saved
        self._write({"name": name, "state": state, "saved": saved})

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        if sys.platform != "win32":
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                self._file.close()
                raise CommandFailed(f"another run is at work in {self.path.parent}") from exc
        self._read(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, file: FileIO) -> None:
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
        lines = data[:whole].splitlines()
        if not lines:
            self._write({"batch": self.batch}, sync=True)
            return
        for line in lines:
            try:
                self._learn(json.loads(line))
            except (ValueError, TypeError, KeyError) as exc:
                raise CommandFailed(f"{self.path} is damaged; remove it to start over") from exc

    def _learn(self, line: dict[str, Any]) -> None:
        if "batch" in line:
            self.batch = line["batch"]
            return
        entry = self.entry(line["name"])
        if "key" in line:
            entry.key, entry.intended_at, entry.again = line["key"], line["at"], line["again"]
            entry.job, entry.state, entry.saved = None, None, ()
        elif "job" in line:
            entry.job = line["job"]
        else:
            entry.state, entry.saved = line["state"], tuple(line["saved"])

    def _write(self, line: dict[str, Any], *, sync: bool = False) -> None:
        assert self._file is not None
        left = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with about(self.path):
            with self._writing:
                end = os.fstat(self._file.fileno()).st_size
                try:
                    while left:
                        left = left[self._file.write(left) :]
                except OSError:
                    with contextlib.suppress(OSError):  # what is half a line would spoil the next one
                        self._file.truncate(end)
                    raise
            if sync:
                os.fsync(self._file.fileno())
