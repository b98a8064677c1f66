"""`receiver transfer`: move a SQLite installation to PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from receiver.runtime.secrets import secrets_path
from receiver.runtime.serving_lock import alone
from receiver.settings import Settings, load
from receiver.store import database
from receiver.store.blobs import open_blobs
from receiver.store.sqlite_file import check_ours, state_of
from receiver.store.upload import upload_files
from submitter.printing import failed, print_json
from submitter.system_errors import described

_GENERATED = {
    "RECEIVER_SECRET_KEYS": ("secret_keys", "secret_key"),
    "RECEIVER_API_TOKENS": ("api_tokens", "api_token"),
    "RECEIVER_NOTIFY_SECRETS": ("notify_secrets", "notify_secret"),
}

To = Annotated[str, typer.Option("--to", metavar="URL", help="The new database: postgresql://…, empty.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def transfer(to: To, as_json: AsJson = False) -> None:
    """
    Copy the SQLite database into an empty PostgreSQL one. The receiver must not run.

    Every table is compared before anything is committed, and nothing is changed at the source. Images and inputs stay
    where they are; with RECEIVER_BLOB_URL set, they are copied into that object store first. Afterwards serve the new
    database only: jobs that are queued are queued in both, and each would send, and pay for, them.
    """
    settings, _ = load()
    if settings.on_postgresql:
        raise failed("RECEIVER_DATABASE_URL names PostgreSQL: a transfer begins at a SQLite database")
    if not to.startswith(("postgresql://", "postgres://")):
        raise failed("--to: write the new database as postgresql://user:password@host/name", status=2)
    path = settings.database_path
    if not path.exists():
        raise failed(f"there is no database at {path}; is RECEIVER_DATA_DIR right?")
    check_ours(path, remedy="is RECEIVER_DATA_DIR right?")
    with alone(settings.data_dir) as is_alone:
        if not is_alone:
            raise failed(f"a receiver runs with the data directory {settings.data_dir}; stop it first")
        state = state_of(path)
        if state.damage is not None:
            raise failed(f"the database at {path} is damaged: {state.damage}; restore a backup first")
        if not state.schema_is_current:
            raise failed(f"the database at {path} is of an older version: run `receiver migrate` first")
        files = _upload(settings)
        copied = asyncio.run(database.transfer(path, to))
    if as_json:
        print_json({"rows": copied, "files": files, "secrets": sorted(_unset(settings))})
        return
    for table, rows in copied.items():
        typer.echo(f"{table}: {rows} {'row' if rows == 1 else 'rows'}, compared")
    typer.echo("\nSet for every process, with the same values:")
    typer.echo("  RECEIVER_DATABASE_URL: what --to named")
    for name, key in sorted(_unset(settings).items()):
        typer.echo(f"  {name}: `{key}` in {secrets_path(settings.data_dir)}, or links and tokens issued so far end")
    if files is None:
        typer.echo(f"Images and inputs stay in {settings.data_dir}: keep RECEIVER_DATA_DIR, shared by all processes.")
    else:
        typer.echo(f"  RECEIVER_BLOB_URL: as now; {files} images and inputs are there")
    typer.echo(f"Do not serve {path} any more: what is queued there would be sent, and billed, a second time.")


def _upload(settings: Settings) -> int | None:
    """Return how many files are in the object store, all of this installation's; None without an object store."""
    if settings.blob_url is None:
        return None
    try:
        return asyncio.run(upload_files(open_blobs(settings.data_dir, settings.blob_url)))
    except OSError as exc:
        raise failed(
            f"images and inputs could not be copied: {described(exc)}; nothing was transferred, run it again"
        ) from exc


def _unset(settings: Settings) -> dict[str, str]:
    """Return the secrets that were generated so far, with their keys in the data directory's file."""
    return {name: key for name, (field, key) in _GENERATED.items() if not getattr(settings, field)}
