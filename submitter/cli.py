"""`submitter`: send images through a running receiver, from a shell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from submitter import shell
from submitter.commands.batch import batch
from submitter.commands.compare import compare
from submitter.commands.connection import Connection
from submitter.commands.jobs import cancel, download, list_jobs, poll, resubmit, show
from submitter.commands.login import login, whoami
from submitter.commands.providers import providers
from submitter.commands.send import send
from submitter.commands.wait import wait
from submitter.environment import choose_color
from submitter.shell import EXIT_STATUSES, Color, Quiet, Verbose, Verbosity, Version, with_joined_lines

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, epilog=EXIT_STATUSES)


@cli.callback()
def connect(
    context: typer.Context,
    receiver: Annotated[
        str | None, typer.Option(help="The receiver's URL. Default: SUBMITTER_RECEIVER_URL, or this machine.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="A receiver stored by `submitter login`.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    color: Color = "auto",
    version: Version = False,
) -> None:
    """
    Send images to AI upscaling APIs through a running receiver.

    The bearer token is SUBMITTER_TOKEN, that of a profile, or that of the receiver whose data directory is here.
    """
    choose_color(color)
    context.obj = Connection(receiver, profile, Verbosity(quiet, verbose))


_COMMANDS: dict[str, Callable[..., None]] = {
    "send": send,
    "batch": batch,
    "compare": compare,
    "wait": wait,
    "list": list_jobs,
    "show": show,
    "download": download,
    "cancel": cancel,
    "poll": poll,
    "resubmit": resubmit,
    "providers": providers,
    "login": login,
    "whoami": whoami,
}
for _name, _command in _COMMANDS.items():
    cli.command(_name, help=with_joined_lines(_command.__doc__))(_command)


def main() -> None:
    """Entry point."""
    shell.run(cli, "submitter", lambda exc: None)
