"""`receiver events`: past events, and new ones as they are emitted."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from receiver.cli.completion import complete_job
from receiver.cli.open_database import open_database
from receiver.domain.events import EVENT_TYPES, Event, EventFilter
from receiver.store.events import Events
from submitter.commands.names import check_names, check_provider, complete_provider
from submitter.printing import Listing, check_reader, failed, json_text, print_json, print_table, say

events = typer.Typer(no_args_is_help=True, help="Show events: what subscribers are sent.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Types = Annotated[list[str] | None, typer.Option("--type", help="Only this type; may be repeated.")]
Provider = Annotated[str | None, typer.Option(help="Only about this provider.", autocompletion=complete_provider)]
OfJob = Annotated[str | None, typer.Option("--job", help="Only about this job.", autocompletion=complete_job)]
MOST = 2**63 - 1
"""The highest position that a database can give."""
_PAUSE_SECONDS = 0.3
_PAGE = 200


@events.command(name="list")
def list_events(
    type_: Types = None,
    provider: Provider = None,
    job: OfJob = None,
    after: Annotated[int, typer.Option(min=0, max=MOST, help="Only above this position.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List events in the order of their positions."""
    choice = _choice(type_, provider, job)

    async def run() -> list[Event]:
        async with open_database() as database:
            log = Events(database)
            await _check_position(log, after)
            found, _ = await log.after(after, limit=limit, choice=choice)
        return list(found)

    found = asyncio.run(run())
    if as_json:
        print_json({"items": [event.to_json() for event in found]})
        return
    table = Listing("position", "time", "type", "provider", "job", "event")
    for event in found:
        moment = f"{event.created_at:%Y-%m-%d %H:%M:%S}Z"
        table.add_row(str(event.position), moment, event.type, event.provider or "", event.job_id or "", event.id)
    print_table(table, empty="no events")


@events.command()
def tail(
    type_: Types = None,
    provider: Provider = None,
    job: OfJob = None,
    after: Annotated[
        int | None,
        typer.Option(min=0, max=MOST, help="Begin after this position; default: at what is emitted from now on."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """Print events as they are emitted, until interrupted."""
    choice = _choice(type_, provider, job)

    async def run() -> None:
        async with open_database() as database:
            log = Events(database)
            await _check_position(log, after or 0)
            position = await log.newest() if after is None else after
            while True:
                found, position = await log.after(position, limit=_PAGE, choice=choice)
                for event in found:
                    say(json_text(event.to_json(), indent=None) if as_json else _line(event))
                check_reader()
                await asyncio.sleep(_PAUSE_SECONDS)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _check_position(log: Events, position: int) -> None:
    """Refuse a *position* that is not in the log: all above it may have been missed, and nothing would come."""
    newest, before = await log.newest(), await log.restored_from(position)
    if position > newest or before is not None:
        hint = "" if before is None else f"; it was restored from a backup: --after {before} shows all that came since"
        message = f"position {position} is not in this log, whose newest event is {newest}{hint}"
        raise failed(message, code="position_ahead")


def _line(event: Event) -> str:
    about = event.job_id or event.provider or ""
    return f"{event.created_at:%H:%M:%S} {event.position:>6}  {event.type}  {about}"


def _choice(types: list[str] | None, provider: str | None, job: str | None) -> EventFilter:
    check_provider(provider)
    check_names(types or (), EVENT_TYPES, "event")
    return EventFilter(frozenset(types or ()), frozenset([provider] if provider else ()), job)
