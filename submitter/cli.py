"""`submitter`: send images through a running receiver, from a shell."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from submitter.commands.batch import batch
from submitter.commands.connection import CommandFailed, Connection
from submitter.commands.providers import providers
from submitter.commands.send import send
from submitter.commands.wait import wait
from submitter.environment import LOCAL_URL, Environment
from submitter.printing import say

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Send images to AI upscaling APIs through a running receiver.",
)


@cli.callback()
def connect(
    context: typer.Context,
    receiver: Annotated[
        str | None, typer.Option(help="Where the receiver is. Default: SUBMITTER_RECEIVER_URL, or this machine.")
    ] = None,
) -> None:
    """Send images to AI upscaling APIs through a running receiver; SUBMITTER_TOKEN is its bearer token."""
    environment = Environment()
    token = environment.token.get_secret_value() if environment.token else None
    context.obj = Connection(receiver or environment.receiver_url or LOCAL_URL, token)


cli.command()(send)
cli.command()(batch)
cli.command()(wait)
cli.command()(providers)


def main() -> None:
    """Entry point: what can't be done is said in a line or two, and is status 1."""
    try:
        cli()
    except CommandFailed as exc:
        say(f"submitter: {exc}", err=True)
        sys.exit(exc.status)
    except OSError as exc:
        say(f"submitter: {exc}", err=True)
        sys.exit(1)
