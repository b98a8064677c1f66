"""`receiver`: the commands, composed."""

from __future__ import annotations

import os
import sys

import typer

from receiver.cli import (
    backup,
    config,
    deliveries,
    demo,
    doctor,
    endpoints,
    jobs,
    listen,
    migrate,
    reread,
    serve,
    trigger,
    tunnel,
    work,
)
from receiver.runtime.data_dir import DataUnusable
from receiver.settings import SettingsInvalid
from receiver.store.errors import StoreError
from submitter.printing import say

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Receive, verify, keep and pass on what AI upscaling APIs answer.",
)
cli.command()(demo.demo)
cli.command()(serve.serve)
cli.command()(work.work)
cli.command()(migrate.migrate)
cli.command()(backup.backup)
cli.command()(backup.restore)
cli.command()(config.config)
cli.command()(tunnel.tunnel)
cli.command()(listen.listen)
cli.command()(trigger.trigger)
cli.command()(doctor.doctor)
cli.add_typer(jobs.jobs, name="jobs")
cli.add_typer(endpoints.endpoints, name="endpoints")
cli.add_typer(deliveries.deliveries, name="deliveries")
cli.command()(deliveries.replay)
cli.command()(reread.reread)


def main() -> None:
    """Entry point: settings that can't be used are told all at once, files that can't be used with their remedy."""
    _open_standard_files()
    try:
        cli()
    except SettingsInvalid as exc:
        print("These settings can't be used:", *exc.problems, sep="\n  ", file=sys.stderr)
        sys.exit(2)
    except (DataUnusable, StoreError, OSError) as exc:
        say(f"receiver: {exc}", err=True)
        sys.exit(1)


def _open_standard_files() -> None:
    """Where one was closed (`2>&-`), a socket would take its number, and the event loop die of closing that."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
