"""`receiver deliveries`: list, show. `receiver replay`: deliver again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from receiver.cli.open_database import open_database
from receiver.domain.deliveries import DeliveryFilter, DeliveryState, DeliveryView, ReplayRefused
from receiver.domain.events import EVENT_TYPES
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from submitter.commands.names import check_names
from submitter.moments import moment_option
from submitter.printing import Listing, failed, print_fields, print_json, print_table

deliveries = typer.Typer(no_args_is_help=True, help="Show deliveries.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_STYLES = {"delivered": "green", "given_up": "red", "dropped": "dim", "pending": "cyan"}


@deliveries.command(name="list")
def list_deliveries(
    state: Annotated[
        list[DeliveryState] | None,
        typer.Option(help="Only these; may be repeated."),
    ] = None,
    undelivered: Annotated[bool, typer.Option("--undelivered", help="Only those tried and not delivered.")] = False,
    fault: Annotated[Literal["ours", "theirs"] | None, typer.Option(help="Only failures of this side.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only for this endpoint.")] = None,
    job: Annotated[str | None, typer.Option(help="Only about this job.")] = None,
    event: Annotated[list[str] | None, typer.Option(help="Only events of this type; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List deliveries, newest first."""
    check_names(event or (), EVENT_TYPES, "event")

    async def run() -> None:
        wanted = DeliveryFilter(
            states=tuple(chosen.value for chosen in state or ()),
            endpoint_id=endpoint,
            job_id=job,
            event_types=tuple(event or ()),
            fault=fault,
            undelivered=undelivered,
        )
        async with open_database() as database:
            found = await DeliveryLog(database).page(wanted, limit=limit)
        if as_json:
            print_json({"items": [delivery.to_json() for delivery in found]})
        else:
            print_table(_table(found), empty="no deliveries")

    asyncio.run(run())


@deliveries.command()
def show(delivery_id: Annotated[str, typer.Argument(help="The delivery's id, dlv_…")], as_json: AsJson = False) -> None:
    """Show a delivery with all its attempts."""

    async def run() -> None:
        async with open_database() as database:
            found = await DeliveryLog(database).get(delivery_id)
        if found is None:
            raise failed(f"there is no delivery {delivery_id}")
        shown, attempts = found
        if as_json:
            print_json({**shown.to_json(), "attempts": [attempt.to_json() for attempt in attempts]})
            return
        print_fields(shown.to_json())
        table = Listing("attempt", "took", "outcome", "answer")
        for attempt in attempts:
            table.add_row(
                f"{attempt.started_at:%Y-%m-%d %H:%M:%S.%f}Z",
                f"{attempt.seconds:.3f} s",
                attempt.error or f"answered {attempt.status}",
                (attempt.answer or b"").decode("utf-8", "replace")[:200],
            )
        if attempts:
            print_table(table)

    asyncio.run(run())


def replay(
    delivery_id: Annotated[str | None, typer.Argument(help="One delivery, dlv_…")] = None,
    endpoint: Annotated[str | None, typer.Option(help="All failures of this endpoint.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Everything since this time: 1h, 2d, 2026-01-31, 2026-01-31T12:00Z.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver again, with the same event ids: one delivery, an endpoint's failures, or everything since a time."""
    if (delivery_id is None) == (endpoint is None and since is None):
        raise failed("name a delivery's id, or --endpoint, --since or both", status=2)
    now = datetime.now(UTC)
    moment = moment_option("--since", since, now)

    async def run() -> dict[str, Any]:
        async with open_database() as database:
            log = DeliveryLog(database)
            if delivery_id is None:
                if endpoint is not None and (found := await Endpoints(database).get(endpoint)) is None:
                    raise failed(f"there is no endpoint {endpoint}")
                if endpoint is not None and found is not None and not found.enabled:
                    raise failed(f"{endpoint} is disabled; `receiver endpoints enable {endpoint}` first")
                return (await log.replay_many(now, endpoint_id=endpoint, since=moment, dry_run=dry_run)).to_json()
            try:
                if not await log.replay(delivery_id, now, dry_run=dry_run):
                    raise failed(f"there is no delivery {delivery_id}")
            except ReplayRefused as exc:
                raise failed(f"{exc}; {exc.remedy}") from exc
            return {"replayed": 1, "again": 1, "never_queued": 0}

    counted = asyncio.run(run())
    if as_json:
        print_json({**counted, "dry_run": dry_run})
        return
    number = counted["replayed"]
    due = "would be sent again" if dry_run else f"{'is' if number == 1 else 'are'} due again"
    missed = f", {counted['never_queued']} of them never queued before" if counted["never_queued"] else ""
    typer.echo(f"{number} {'delivery' if number == 1 else 'deliveries'} {due}{missed}")


def _table(found: list[DeliveryView]) -> Listing:
    table = Listing("delivery", "event", "state", "tries", "status", "to", "note")
    for delivery in found:
        table.add_row(
            delivery.id,
            delivery.event_type,
            Text(delivery.state, style=_STYLES.get(delivery.state, "")),
            str(delivery.tries),
            str(delivery.last_status or ""),
            delivery.url or "",
            f"{delivery.fault}: {delivery.last_error}" if delivery.fault else "",
        )
    return table
