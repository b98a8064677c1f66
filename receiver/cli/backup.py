"""
`receiver backup` and `receiver restore`: everything in one directory, consistent, while the receiver runs.

All of it holds secrets: whatever is made here is readable by its owner only (0600, directories 0700).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.restored_jobs import hold_queued
from receiver.cli.sandbox_mark import SandboxMark
from receiver.domain.jobs import Job
from receiver.runtime.data_dir import DataUnusable, prepare, usable
from receiver.runtime.secrets import secrets_path
from receiver.runtime.serving_lock import alone
from receiver.settings import Settings, load
from receiver.store.sqlite_file import check_ours, copy_to, restoring, state_of
from submitter.printing import Listing, failed, print_json, print_table
from submitter.provider_settings import ProviderSettings
from submitter.system_errors import about

_FILES = ("images", "inputs", "answers")


def backup(directory: Annotated[Path, typer.Argument(help="A new directory.")]) -> None:
    """
    Copy database, files and generated secrets into a new directory.

    The database comes first, as one consistent snapshot; files are written before the rows that name them, so the
    copy holds every file that its rows name, unless its time to be dropped came meanwhile. The directory is there when
    all of it is: one that was not finished is never taken for a backup.
    """
    settings, _ = load()
    _only_sqlite(settings)
    os.umask(0o077)
    if not settings.database_path.exists():
        raise failed(f"there is no database at {settings.database_path}; is RECEIVER_DATA_DIR right?")
    check_ours(settings.database_path, remedy="is RECEIVER_DATA_DIR right? `receiver migrate` finishes a new one")
    with _whole(directory) as part:
        copy_to(settings.database_path, part / "receiver.db")
        _copy(settings.data_dir, part)
    typer.echo(f"backed up into {directory}")
    if settings.blob_url is not None:
        typer.echo(
            "kept images and inputs stay in the object store, which this does not copy: its versioning or replication\n"
            "backs them up. Restore with the same RECEIVER_BLOB_URL."
        )


def restore(
    directory: Annotated[Path, typer.Argument(help="What `receiver backup` made.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    Put a backup into an empty data directory. The receiver must not run.

    Jobs that were queued in the backup may have been sent, and billed, since it was made. They become `unconfirmed`,
    are listed, and are not sent again by themselves.
    """
    settings, each = load()
    _only_sqlite(settings)
    os.umask(0o077)
    database = directory / "receiver.db"
    if not database.is_file():
        raise failed(f"{directory} holds no backup")
    for path in (settings.database_path, _beside(settings.database_path, "-wal")):
        if path.exists():
            raise failed(f"there is a database at {path}; move the data directory out of the way first")
    damage = state_of(database).damage
    if damage is not None:
        raise failed(f"the backup's database is damaged: {damage}; restore another one")
    check_ours(database, remedy="name what `receiver backup` made")
    prepare(settings.data_dir)
    with alone(settings.data_dir) as is_alone:
        if not is_alone:
            raise failed(f"a receiver runs with the data directory {settings.data_dir}; stop it first")
        held = _restore(settings, each, directory)
    if as_json:
        print_json({"restored_into": str(settings.data_dir), "unconfirmed": [job.id for job in held]})
        return
    typer.echo(f"restored into {settings.data_dir}; start the receiver")
    _list(held)


def _only_sqlite(settings: Settings) -> None:
    if settings.on_postgresql:
        raise failed("the database is PostgreSQL: back it up and restore it with pg_dump and pg_restore")


def _restore(settings: Settings, each: Mapping[str, ProviderSettings], directory: Path) -> list[Job]:
    """Copy *directory* into the data directory. Returns the jobs that may have been sent since the backup."""
    settings.database_path.parent.mkdir(parents=True, exist_ok=True)
    # The database comes last, and in one step: its presence means that everything else is there. Until then the other
    # name's presence keeps a receiver from making an empty one.
    part = restoring(settings.database_path)
    for leftover in (_beside(part, "-wal"), _beside(part, "-shm")):
        leftover.unlink(missing_ok=True)
    part.touch(mode=0o600)
    _copy(directory, settings.data_dir)
    with about(part):
        shutil.copyfile(directory / "receiver.db", part)
    held = asyncio.run(hold_queued(part, settings, each))
    _sync(settings.data_dir)
    part.replace(settings.database_path)
    _sync_one(settings.database_path.parent)
    return held


def _list(held: list[Job]) -> None:
    if not held:
        return
    typer.echo(f"\n{len(held)} {'job was' if len(held) == 1 else 'jobs were'} queued when this backup was made and may")
    typer.echo("have been sent, and billed, since. They are unconfirmed and will not be sent again:\n")
    table = Listing("job", "provider", "created")
    for job in held:
        table.add_row(job.id, job.provider, f"{job.created_at:%Y-%m-%d %H:%M:%S}Z")
    print_table(table)
    typer.echo("\nsend one again, which may cost twice:  submitter resubmit JOB --may-pay-twice")
    typer.echo("give one up:                           submitter cancel JOB --abandon")


def _beside(database: Path, suffix: str) -> Path:
    return database.with_name(database.name + suffix)


def _copy(source: Path, target: Path) -> None:
    """Copy files and generated secrets. A file that is removed meanwhile is no longer needed."""
    for name in _FILES:
        for path in sorted((source / name).rglob("*")) if (source / name).exists() else ():
            to = target / path.relative_to(source)
            if path.is_dir():
                to.mkdir(parents=True, exist_ok=True)
                to.chmod(0o700)
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    _copy_file(path, to)
    if secrets_path(source).exists():
        _copy_file(secrets_path(source), secrets_path(target))
    SandboxMark(target).follow(SandboxMark(source))


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file with its modification time, by which inputs expire, but not its mode, which may not fit here."""
    target.unlink(missing_ok=True)
    with about(target):
        shutil.copyfile(source, target)
    times = source.stat()
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextlib.contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """Yield a new directory. It is renamed to *directory* if the block succeeds and all is on disk, else removed."""
    if os.path.lexists(directory):
        raise failed(f"{directory} is there already; name a new directory")
    part = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    with usable(directory.parent, "name a directory that this user can write to"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    try:
        yield part
        _sync(part)
        part.rename(directory)
        with contextlib.suppress(OSError):  # it is whole and in its place, although its parent may not be readable
            _sync_one(directory.parent)
    except BaseException as exc:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(exc, DataUnusable) and part in exc.path.parents:
            raise DataUnusable(directory, exc.wrong, exc.remedy) from exc
        if isinstance(exc, OSError) and str(part) in (exc.filename2 or exc.filename or ""):
            raise OSError(exc.errno, exc.strerror, str(directory)) from exc
        raise


def _sync(directory: Path) -> None:
    """Flush the copy to the disk before it is reported as made."""
    for path in (*directory.rglob("*"), directory):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with about(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
