"""
The file of a SQLite database: created for its owner only, migrated, checked, copied, and inspected from outside.

`DataUnusable` says why it can't be used: the file, what is wrong with it, and what to do.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from receiver.runtime.data_dir import DataUnusable, usable
from receiver.store.errors import DatabaseUnavailable
from receiver.store.schema import UnknownSchema, lacks_migrations, newest_schema
from submitter.system_errors import described

log = structlog.get_logger("receiver.store")

_RESTORE = "move it away and restore a backup (`receiver restore`)"
_WRITABLE = "give the file and its directory to the user that this runs as, on a disk that can be written"
_NEWER = "install the version that it was last used with, or a newer one"
_REMEDIES = {
    sqlite3.SQLITE_NOTADB: _RESTORE,
    sqlite3.SQLITE_CORRUPT: _RESTORE,
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_CANTOPEN: _WRITABLE,
    sqlite3.SQLITE_PERM: _WRITABLE,
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_IOERR: "see what the system's log says of this disk",
    sqlite3.SQLITE_BUSY: "another process holds it; try again, or end that process",
}
"""Causes by SQLite's primary code that lie with the file. Every other code is a bug in this program."""


@contextlib.contextmanager
def usable_database(path: Path) -> Iterator[None]:
    """Turn SQLite's complaints about the file at *path* into `DataUnusable`; our own bugs are raised as they are."""
    try:
        yield
    except UnknownSchema as exc:
        raise DataUnusable(path, "its schema is not known to this version", _NEWER) from exc
    except (DatabaseUnavailable, sqlite3.Error) as exc:
        cause: BaseException | None = exc
        while cause is not None and not isinstance(cause, sqlite3.Error):
            cause = cause.__cause__
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        remedy = _REMEDIES.get(code, "")
        if not remedy:
            raise
        if code == sqlite3.SQLITE_CANTOPEN and path.is_file() and os.access(path.parent, os.W_OK | os.X_OK):
            remedy = "if it belongs to this user, raise the limit of open files (`ulimit -n`)"
        raise DataUnusable(path, f"can't be used: {cause}", remedy) from exc


def restoring(path: Path) -> Path:
    """Return what the database at *path* is called while it is being restored; it is there until all else is."""
    return path.with_name(".restoring")


def make_private(path: Path) -> None:
    """
    Create the file, and its log files, for their owner only: they hold the secrets of endpoints.

    Raises `DataUnusable`, also where a restore was not finished: a new database in its place would pass for it.
    """
    if restoring(path).exists() and not path.exists():
        raise DataUnusable(
            path, "a restore was not finished", f"run `receiver restore` again, or remove {restoring(path)}"
        )
    with usable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)


class Presence:
    """
    A check that the file that was opened at *path* is still the one there.

    After a file was deleted, moved away or replaced, an open connection can still write to it, and everything written
    is lost. Call `check` before a transaction; it costs a few microseconds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)
        self._reported = False

    def check(self) -> None:
        """Raise `DatabaseUnavailable` if the file is no longer there, and log it the first time."""
        if _identity(self._path) == self._identity:
            self._reported = False
            return
        wrong = f"{self._path} is not the file any more that was opened: it was deleted, moved or replaced"
        if not self._reported:
            self._reported = True
            log.error(
                "database_gone",
                path=str(self._path),
                effect="nothing can be recorded: callbacks and jobs are answered 503",
                remedy="stop the receiver, bring its data directory back (or restore a backup), and start it again",
            )
        raise DatabaseUnavailable(wrong)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def migrate(path: Path) -> None:
    """Bring the file to the newest schema, and have it keep a write-ahead log. Raises `DataUnusable`."""
    with usable_database(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        if lacks_migrations(_revision(connection)):
            from receiver.store.upgrade import upgrade_sqlite

            upgrade_sqlite(connection)


def _revision(connection: sqlite3.Connection) -> str | None:
    """Return the revision of the schema; None where there is none."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone() is None:
        return None
    found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if found is None else str(found[0])


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open a plain connection that can neither write nor create the file."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def check_ours(path: Path, *, remedy: str) -> None:
    """Check that the database at *path* has our tables and a known schema. Raises `DataUnusable`; changes nothing."""
    with usable_database(path), contextlib.closing(open_to_read(path)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        found = _revision(connection)
        if found is None or not {"jobs", "evidence"} <= names:
            raise DataUnusable(path, "is not a receiver's database", remedy)
        lacks_migrations(found)  # raises `UnknownSchema`


def copy_to(path: Path, target: Path) -> None:
    """Write one consistent snapshot of the database at *path* to the new file *target*. Raises `DataUnusable`."""
    with usable_database(path), contextlib.closing(sqlite3.connect(path, timeout=30)) as source:
        try:
            source.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(target),))  # a name may not be UTF-8
        except sqlite3.OperationalError as exc:
            why = _no_room_beside(target, path.stat().st_size)
            if why is None:
                raise
            raise DataUnusable(target, *why) from exc


def _no_room_beside(target: Path, size: int) -> tuple[str, str] | None:
    """Return why no file of *size* bytes can be beside *target*, and the remedy: then the source is not at fault."""
    try:
        with tempfile.TemporaryFile(dir=target.parent) as file:
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as exc:
        wrong, _, remedy = described(OSError(exc.errno, exc.strerror)).partition("; ")
        return f"can't be written: {wrong}", remedy or "name another place"
    return None


@dataclass(frozen=True, slots=True)
class FileState:
    """The result of inspecting the file. `damage` is None for an intact one; only then is the rest known."""

    damage: str | None
    schema_is_current: bool = False
    journal_mode: str = ""


def state_of(path: Path) -> FileState:
    """Read the whole file at *path* for damage and for what matters to a writer. Changes nothing."""
    try:
        with contextlib.closing(open_to_read(path)) as connection:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if found != "ok":
                return FileState(found)
            mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
            revision = _revision(connection)
    except sqlite3.DatabaseError as exc:
        return FileState(str(exc))
    return FileState(None, revision == newest_schema(), mode)


def is_at_newest_schema(path: Path) -> bool:
    """Return whether the file exists and `migrate` has nothing to do. Raises `DataUnusable` if it can't be read."""
    if not path.exists():
        return False
    state = state_of(path)
    if state.damage is not None:
        raise DataUnusable(path, f"can't be used: {state.damage}", f"{_WRITABLE}, or {_RESTORE}")
    return state.schema_is_current


def has_jobs(path: Path) -> bool:
    """Return whether there is a job in the file. Raises `DataUnusable` if that cannot be read."""
    with usable_database(path), contextlib.closing(open_to_read(path)) as connection:
        try:
            return connection.execute("SELECT 1 FROM jobs LIMIT 1").fetchone() is not None
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # a file without our tables
                return False
            raise


def enabled_endpoints(path: Path) -> list[tuple[str, str]]:
    """Return id and URL of the enabled endpoints in a file that may be in use; none if it can't be read."""
    try:
        with contextlib.closing(open_to_read(path)) as connection:
            return connection.execute("SELECT id, url FROM endpoints WHERE enabled = 1 ORDER BY id").fetchall()
    except sqlite3.DatabaseError:
        return []
