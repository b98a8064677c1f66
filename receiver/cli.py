"""`receiver`: the commands."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from receiver import logs
from receiver.app import Receiver
from receiver.database import Database
from receiver.server import server
from receiver.settings import SettingsInvalid, load

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Receive, verify, keep and pass on what AI upscaling APIs answer.",
)


@cli.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
) -> None:
    """Run the service: one process, everything in it."""
    settings, each = load()
    logs.set_up(settings.log_format)
    asyncio.run(_serve(Receiver(settings, each), host, port))


async def _serve(receiver: Receiver, host: str, port: int) -> None:
    running = server(
        receiver.app,
        host=host,
        port=port,
        on_stop=receiver.stopping.set,
        trusted_proxies=receiver.settings.trusted_proxies,
    )
    await running.serve()


@cli.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    settings, _ = load()

    async def run() -> None:
        database = await Database.open(settings.database_path)
        await database.close()

    asyncio.run(run())
    typer.echo(f"{settings.database_path} is at the newest schema")


def main() -> None:
    """Entry point: settings that can't be used are told all at once."""
    try:
        cli()
    except SettingsInvalid as exc:
        print("These settings can't be used:", *exc.problems, sep="\n  ", file=sys.stderr)
        sys.exit(2)
