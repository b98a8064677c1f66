"""
`receiver serve` that dies: `python -m tests.support.crashing COMMIT BEFORE|AFTER serve …` kills itself with SIGKILL at
its COMMIT-th commit, just before it or as soon as something else is asked of the database behind it.

Only the composition differs from the real one: a database whose writing connection is traced by SQLite itself.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from pathlib import Path

import receiver.app
from receiver.cli import main
from receiver.store.database import Database, on_its_thread


class MortalDatabase(Database):
    """Counts the commits of this process from its opening on."""

    commits = 0
    die_at = 0
    before = True

    @classmethod
    async def open(cls, path: Path, *, readers: int = 4) -> Database:
        database = await super().open(path, readers=readers)
        assert database._raw is not None
        await on_its_thread(database._raw, _trace)
        return database


def _trace(connection: sqlite3.Connection) -> None:
    def saw(statement: str) -> None:
        here = MortalDatabase
        if not here.before and here.commits == here.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        alone = not connection.in_transaction and statement.startswith(("INSERT", "UPDATE", "DELETE"))
        if statement == "COMMIT" or alone:
            here.commits += 1
            if here.before and here.commits == here.die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    connection.set_trace_callback(saw)


if __name__ == "__main__":
    MortalDatabase.die_at, MortalDatabase.before = int(sys.argv[1]), sys.argv[2] == "BEFORE"
    del sys.argv[1:3]
    receiver.app.Database = MortalDatabase  # type: ignore[misc]
    main()
