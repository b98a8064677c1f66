"""`submitter providers`: the APIs that the receiver can use, and their state."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from submitter.commands.connection import SHORT_TIMEOUT_SECONDS, Connection, as_text, run
from submitter.printing import Listing, print_table


def providers(
    context: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print them as JSON, with the schema of their options.")
    ] = False,
) -> None:
    """List the receiver's providers: key, options, queue, pause, and what they cost today."""
    connection: Connection = context.obj
    found = run(_found(connection))
    if as_json:
        typer.echo(as_text(found))
        return
    table = Listing("provider", "key", "options", "queue", "paused")
    for info in found:
        options = ", ".join(name for name in info["options"].get("properties", {}) if name != "passthrough")
        paused = info["paused"]["reason"] if info["paused"] else "no"
        table.add_row(info["name"], "yes" if info["configured"] else "no", options, _queue(info["queue"]), paused)
    print_table(table)


async def _found(connection: Connection) -> list[dict[str, Any]]:
    async with connection.open(timeout=SHORT_TIMEOUT_SECONDS) as client:
        return [provider.to_json() for provider in await client.providers()]


def _queue(queue: dict[str, Any]) -> str:
    if not queue["length"]:
        return "empty"
    seconds = queue["done_in_seconds"]
    return f"{queue['length']}" + (f", done in {seconds:.0f} s" if seconds is not None else "")
