"""`receiver`: the commands, composed."""

from __future__ import annotations

import typer

from receiver.cli import (
    backup,
    config,
    deliveries,
    demo,
    doctor,
    endpoints,
    events,
    evidence,
    jobs,
    listen,
    migrate,
    open,
    providers,
    reread,
    serve,
    signature,
    trigger,
    tunnel,
    work,
)
from receiver.runtime.data_dir import DataUnusable
from receiver.settings import SettingsInvalid
from receiver.store.errors import StoreError
from submitter import shell
from submitter.environment import choose_color
from submitter.printing import CommandFailed
from submitter.shell import EXIT_STATUSES, Color, Quiet, Verbose, Verbosity, Version

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, epilog=EXIT_STATUSES)


@cli.callback()
def options(
    context: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = False,
    color: Color = "auto",
    version: Version = False,
) -> None:
    """Receive, verify, keep and pass on the results of AI upscaling APIs."""
    choose_color(color)
    context.obj = Verbosity(quiet, verbose)


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
cli.command(name="open")(open.open_page)
cli.add_typer(jobs.jobs, name="jobs")
cli.add_typer(evidence.evidence, name="evidence")
cli.add_typer(events.events, name="events")
cli.add_typer(providers.providers, name="providers")
cli.add_typer(endpoints.endpoints, name="endpoints")
cli.add_typer(deliveries.deliveries, name="deliveries")
cli.command()(deliveries.replay)
cli.command()(reread.reread)
cli.add_typer(signature.signature, name="signature")


def main() -> None:
    """Entry point."""
    shell.run(cli, "receiver", _explained)


def _explained(exc: BaseException) -> CommandFailed | None:
    if isinstance(exc, SettingsInvalid):
        return CommandFailed("these settings can't be used", status=2, code="invalid_settings", details=exc.problems)
    if isinstance(exc, DataUnusable | StoreError):
        return CommandFailed(str(exc), code="data_unusable")
    return None
