"""`receiver backup` and `receiver restore`: everything in one directory, consistent, while the receiver runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.sandbox_mark import SandboxMark
from receiver.runtime.data_dir import prepare, usable
from receiver.runtime.secrets import secrets_path
from receiver.settings import Settings, load
from receiver.store.sqlite_file import check_ours, copy_to, state_of
from submitter.printing import failed

_FILES = ("images", "inputs", "answers")


def backup(directory: Annotated[Path, typer.Argument(help="A new directory.")]) -> None:
    """
    Copy database, files and generated secrets into a new directory.

    The database comes first, as one consistent snapshot; files are written before the rows that name them, so the
    copy holds every file that its rows name, unless its time to be dropped came meanwhile. The directory is there when
    all of it is: one that was not finished is never taken for a backup.
    """
    settings, _ = load()
    if not settings.database_path.exists():
        raise failed(f"there is no database at {settings.database_path}; is RECEIVER_DATA_DIR right?")
    check_ours(settings.database_path, remedy="is RECEIVER_DATA_DIR right? `receiver migrate` finishes a new one")
    with _whole(directory) as part:
        copy_to(settings.database_path, part / "receiver.db")
        _copy(settings.data_dir, part)
    typer.echo(f"backed up into {directory}")


def restore(directory: Annotated[Path, typer.Argument(help="What `receiver backup` made.")]) -> None:
    """Put a backup into an empty data directory. The receiver must not run."""
    settings, _ = load()
    database = directory / "receiver.db"
    if not database.exists():
        raise failed(f"{directory} holds no backup")
    if settings.database_path.exists():
        raise failed(f"there is a database at {settings.database_path}; move the data directory out of the way first")
    damage = state_of(database).damage
    if damage is not None:
        raise failed(f"the backup's database is damaged: {damage}; restore another one")
    check_ours(database, remedy="name what `receiver backup` made")
    _restore(settings, directory)
    typer.echo(f"restored into {settings.data_dir}; start the receiver")


def _restore(settings: Settings, directory: Path) -> None:
    prepare(settings.data_dir)
    _copy(directory, settings.data_dir)
    settings.database_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The database last, and in one step: its presence says that everything else is there.
    part = settings.database_path.with_name(".restoring")
    shutil.copyfile(directory / "receiver.db", part)
    part.chmod(0o600)
    _sync(settings.data_dir)
    part.replace(settings.database_path)


def _copy(source: Path, target: Path) -> None:
    """Files and generated secrets. One that is dropped while we copy is no longer wanted."""
    for name in _FILES:
        for path in sorted((source / name).rglob("*")) if (source / name).exists() else ():
            to = target / path.relative_to(source)
            if path.is_dir():
                to.mkdir(parents=True, exist_ok=True, mode=0o700)
            else:
                to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy2(path, to)
    if secrets_path(source).exists():
        secrets_path(target).touch(mode=0o600)
        shutil.copy2(secrets_path(source), secrets_path(target))
    SandboxMark(target).follow(SandboxMark(source))


@contextlib.contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A new directory, named *directory* once the block has ended well and all is on disk; else it goes."""
    if os.path.lexists(directory):
        raise failed(f"{directory} is there already; name a new directory")
    part = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    with usable(directory.parent, "name a directory that this user can write to"):
        directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.mkdir(mode=0o700)
    try:
        yield part
        _sync(part)
        part.rename(directory)
        with contextlib.suppress(OSError):  # it is whole and in its place; that place may be closed to reading
            _sync_one(directory.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _sync(directory: Path) -> None:
    """Have the copy on disk before anybody is told that it is."""
    for path in (*directory.rglob("*"), directory):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
