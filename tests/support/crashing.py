"""`receiver` that kills itself: `COMMIT BEFORE|AFTER` and its own arguments."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import receiver.cli
import receiver.parts
from receiver.store.engines.sqlite import SqliteDatabase


class MortalConnection(sqlite3.Connection):
    """Counts the commits of this process from its opening on."""

    commits = 0
    die_at = 0
    before = True

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.set_trace_callback(self._saw)

    def _saw(self, statement: str) -> None:
        here = MortalConnection
        if not here.before and here.commits == here.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        alone = not self.in_transaction and statement.startswith(("INSERT", "UPDATE", "DELETE"))
        if statement == "COMMIT" or alone:
            here.commits += 1
            if here.before and here.commits == here.die_at:
                os.kill(os.getpid(), signal.SIGKILL)


async def open_mortal(path: Path, *, listen_url: str | None = None) -> SqliteDatabase:
    return await SqliteDatabase.open(path, writer=MortalConnection)


def main() -> None:
    MortalConnection.die_at, MortalConnection.before = int(sys.argv[1]), sys.argv[2] == "BEFORE"
    del sys.argv[1:3]
    receiver.parts.open_database = open_mortal  # type: ignore[assignment,attr-defined]
    receiver.cli.main()
