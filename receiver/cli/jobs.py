"""`receiver jobs`: list, show, explain, watch."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from receiver.cli.open_database import open_database
from receiver.domain.jobs import Job, KeptImage, lost_reason
from receiver.store.job_list import JobFilter
from receiver.store.jobs import JobStore
from receiver.store.providers import ProviderTable
from receiver.store.timeline import Line, Timeline, explain
from submitter.commands.names import check_provider
from submitter.moments import moment_option
from submitter.printing import (
    CommandFailed,
    Listing,
    age,
    check_reader,
    console,
    failed,
    harmless,
    job_note,
    print_fields,
    print_json,
    print_table,
    state_text,
)
from submitter.vocabulary import State
from submitter.words import job_fields

jobs = typer.Typer(no_args_is_help=True, help="List and explain jobs, and act on them.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="The job's id, job_…")]


@jobs.command(name="list")
def list_jobs(
    text: Annotated[str | None, typer.Argument(help="Part of an id, of the image's file name, or of metadata.")] = None,
    state: Annotated[list[State] | None, typer.Option(help="Only these states; may be repeated.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider's.")] = None,
    lost: Annotated[bool, typer.Option("--lost", help="Only jobs that were paid for and whose results are lost.")] = (
        False
    ),
    since: Annotated[str | None, typer.Option(help="Created at this time or later: 1h, 2d, 2026-01-31.")] = None,
    until: Annotated[str | None, typer.Option(help="Created before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    now = datetime.now(UTC)
    wanted = JobFilter(
        states=tuple(chosen.value for chosen in state or ()),
        providers=(provider,) if provider else (),
        since=moment_option("--since", since, now),
        until=moment_option("--until", until, now),
        text=text or "",
        lost=lost,
    )
    check_provider(provider)

    async def run() -> None:
        async with open_database() as database:
            found = await _found(JobStore(database), wanted, limit)
            pauses = await ProviderTable(database).pauses()
        if as_json:
            reasons = [{"reason": lost_reason(job, images)} if lost else {} for job, images in found]
            shown = [
                job.to_json(images, pause=pauses.get(job.provider)) | reason
                for (job, images), reason in zip(found, reasons, strict=True)
            ]
            print_json({"items": shown})
        elif lost:
            print_table(_ledger(found), empty="no paid result was lost")
        else:
            print_table(_table(found, now), empty="no jobs")

    asyncio.run(run())


async def _found(store: JobStore, wanted: JobFilter, limit: int) -> list[tuple[Job, list[KeptImage]]]:
    """Return the newest *limit* jobs; a page of a text search may be short, or empty, and not the last."""
    found: list[tuple[Job, list[KeptImage]]] = []
    cursor: str | None = None
    while True:
        page = await store.page(wanted, before=cursor, limit=limit - len(found))
        found += page.jobs
        cursor = page.next
        if cursor is None or len(found) >= limit:
            return found


def _ledger(found: Sequence[tuple[Job, list[KeptImage]]]) -> Listing:
    table = Listing("id", "provider", "finished", "cost", "reason")
    for job, images in found:
        cost = f"{job.cost.amount:f} {job.cost.unit}" if job.cost else f"unknown: set {job.provider.upper()}_PRICE"
        table.add_row(
            job.id,
            job.provider,
            f"{job.finished_at:%Y-%m-%d %H:%M:%S}Z" if job.finished_at else "",
            cost,
            harmless(lost_reason(job, images) or ""),
        )
    return table


@jobs.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job with all its fields."""

    async def run() -> None:
        async with open_database() as database:
            found = await JobStore(database).job(job_id)
            pauses = await ProviderTable(database).pauses()
        if found is None:
            raise _no_such_job(job_id)
        job, images = found
        shown = job.to_json(images, pause=pauses.get(job.provider))
        if as_json:
            print_json(shown)
            return
        print_fields(job_fields(shown))

    asyncio.run(run())


@jobs.command(name="explain")
def explain_job(job_id: JobId, as_json: AsJson = False) -> None:
    """Show the timeline of a job: what came in, how it was read, events, deliveries, and what happens next."""

    async def run() -> None:
        async with open_database() as database:
            timeline = await explain(database, job_id, datetime.now(UTC))
        if timeline is None:
            raise _no_such_job(job_id)
        if as_json:
            print_json(timeline.to_json())
        else:
            _print_timeline(timeline)

    asyncio.run(run())


@jobs.command()
def watch(
    job_ids: Annotated[
        list[str] | None, typer.Argument(help="Watch these, until all have ended. Default: the newest.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two reads of the database.")] = 1.0,
) -> None:
    """Show a live table, until interrupted or, with ids, until those jobs have ended."""

    async def run() -> None:
        async with open_database() as database:
            store = JobStore(database)
            with Live(console=console(), auto_refresh=False, transient=False) as screen:
                while True:
                    found = await _watched(store, job_ids)
                    screen.update(Group(_table(found, datetime.now(UTC)), _counts(found)), refresh=sys.stdout.isatty())
                    if job_ids and all(job.state.terminal for job, _ in found):
                        screen.refresh()
                        return
                    check_reader()
                    await asyncio.sleep(every)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


async def _watched(store: JobStore, job_ids: Sequence[str] | None) -> list[tuple[Job, list[KeptImage]]]:
    if not job_ids:
        return await store.jobs(limit=20)
    found = [(job_id, await store.job(job_id)) for job_id in job_ids]
    for job_id, job in found:
        if job is None:
            raise _no_such_job(job_id)
    return [job for _, job in found if job is not None]


def _table(found: Sequence[tuple[Job, Sequence[KeptImage]]], now: datetime) -> Listing:
    table = Listing("job", "provider", "state", "took", "by", "images", "note")
    for job, images in found:
        table.add_row(
            job.id,
            job.provider,
            state_text(job.state.value),
            age(job.created_at, job.finished_at or now),
            job.settled_by.value if job.settled_by else "",
            f"{sum(image.kept for image in images)}/{len(images)}" if images else "",
            job_note(job.error.message if job.error else None, job.last_error),
        )
    return table


def _counts(found: Sequence[tuple[Job, Sequence[KeptImage]]]) -> Text:
    counts: dict[str, int] = {}
    for job, _ in found:
        counts[job.state.value] = counts.get(job.state.value, 0) + 1
    return Text("  ".join(f"{count} {state}" for state, count in sorted(counts.items())), style="dim")


def _print_timeline(timeline: Timeline) -> None:
    out = console()
    job = timeline.job
    out.print(Text(f"{job.id}  {job.provider}  {job.state.value}", style="bold"))
    began = job.created_at
    for line in timeline.past:
        out.print(_line(line, began, "  "))
    if not timeline.next:
        out.print(Text("nothing left to do: the job has finished", style="dim"))
    for line in timeline.next:
        out.print(_line(line, began, "→ ", style="cyan"))


def _line(line: Line, began: datetime, mark: str, style: str = "") -> Table:
    """Format a line so that its words wrap next to the time, not below it."""
    when = (
        "at any time"
        if line.at is None
        else f"{line.at:%Y-%m-%d %H:%M:%S}Z {(line.at - began).total_seconds():+9.3f} s"
    )
    row = Table.grid()
    row.add_column(no_wrap=True)
    row.add_column(overflow="fold")
    heading = Text.assemble((mark, style), (f"{when:<34}", "dim"), (f"{line.what:<12}", "bold"))
    row.add_row(heading, Text(harmless(line.text), style=style))
    return row


def _no_such_job(job_id: str) -> CommandFailed:
    return failed(f"there is no job {job_id}")
