"""`submitter list | show | cancel | poll | resubmit | download`: jobs of a running receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from submitter.commands.completion import AsJson, JobId, JobIds
from submitter.commands.connection import SHORT_TIMEOUT_SECONDS, CommandFailed, Connection, as_text, job_to_json, run
from submitter.commands.names import check_provider, complete_provider
from submitter.commands.results import make_ready, naming
from submitter.errors import Overloaded, RequestRefused, Unauthorized
from submitter.moments import moment_option
from submitter.printing import Listing, age, job_note, print_fields, print_table, say, state_text
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.values import Job
from submitter.vocabulary import State
from submitter.words import job_fields, waiting_text

_AT_ONCE = 8
"""Jobs that are changed at once; the order of the output is that in which they finish."""

Change = Callable[[AsyncClient, str], Awaitable[Job | None]]


def list_jobs(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(help="Part of an id, of the image's file name, or of metadata.")] = None,
    state: Annotated[list[State] | None, typer.Option(help="Only these states; may be repeated.")] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="Only these providers' jobs; may be repeated.", autocompletion=complete_provider),
    ] = None,
    since: Annotated[str | None, typer.Option(help="Created at this time or later: 1h, 2d, 2026-01-31.")] = None,
    until: Annotated[str | None, typer.Option(help="Created before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    connection: Connection = context.obj
    for name in provider or ():
        check_provider(name)
    now = datetime.now(UTC)
    after, before = moment_option("--since", since, now), moment_option("--until", until, now)

    async def work() -> list[Job]:
        found: list[Job] = []
        async with connection.open(timeout=SHORT_TIMEOUT_SECONDS) as client:
            async for job in client.jobs(
                state=[wanted.value for wanted in state or ()],
                provider=provider or (),
                since=after,
                until=before,
                q=text,
            ):
                found.append(job)
                if len(found) == limit:
                    break
        return found

    found = run(work())
    if as_json:
        typer.echo(as_text({"items": [job.to_json() for job in found]}))
    else:
        print_table(jobs_table(found, now), empty="no jobs")


def show(context: typer.Context, job: JobId, as_json: AsJson = False) -> None:
    """Show a job with all its fields."""
    connection: Connection = context.obj

    async def work() -> Job:
        async with connection.open(timeout=SHORT_TIMEOUT_SECONDS) as client:
            return await client.job(job)

    found = run(work())
    if as_json:
        typer.echo(as_text(found.to_json()))
    else:
        print_fields(job_fields(found.to_json()))


def cancel(
    context: typer.Context,
    jobs: JobIds,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Stop waiting for jobs that were sent, which may still be billed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cancel queued jobs."""
    _change(context, jobs, lambda client, job: client.cancel(job, abandon=abandon), as_json)


def poll(
    context: typer.Context,
    jobs: JobIds,
    wait: Annotated[
        float, typer.Option(min=0, max=86_400, help="The most seconds to wait for each poll; 0: do not wait.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """
    Ask the provider for the state of jobs now, and print it; for lost images, ask for fresh links.

    A job that was polled a moment ago is polled a few seconds later. Exit status 124: a poll has not happened yet.
    """
    late = 0

    async def polled(client: AsyncClient, job: str) -> Job | None:
        nonlocal late
        try:
            return await client.poll(job, wait=wait)
        except TimeoutError as exc:
            late += 1
            say(str(exc), err=True)
            return None

    _change(context, jobs, polled, as_json, note="" if wait else ": its poll is due")
    if late:
        raise CommandFailed(f"{late} of {len(jobs)} were not polled yet", status=124, code="timeout")


def resubmit(
    context: typer.Context,
    jobs: JobIds,
    may_pay_twice: Annotated[
        bool, typer.Option("--may-pay-twice", help="Also unconfirmed jobs, which may be running and billed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send jobs that ended without a result again, as new jobs."""
    _change(context, jobs, lambda client, job: client.resubmit(job, may_pay_twice=may_pay_twice), as_json)


def download(
    context: typer.Context,
    jobs: JobIds,
    out: Annotated[Path, typer.Option(help="The directory for the images.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Save the images of jobs that succeeded."""
    connection: Connection = context.obj
    make_ready(out)

    async def work() -> list[tuple[Job, list[Path]]]:
        saved: list[tuple[Job, list[Path]]] = []
        async with connection.open() as client:
            for job_id in jobs:
                job = await client.job(job_id, timeout=SHORT_TIMEOUT_SECONDS)
                if not job.ended:
                    raise CommandFailed(
                        f"{job.id} is {job.state.value}; `submitter wait {job.id} --out {out}` waits for it"
                    )
                with naming(job, out):
                    saved.append((job, await client.save(job, out)))
        return saved

    for job, paths in run(work()):
        if as_json:
            typer.echo(as_text(job_to_json(job, paths)))
        else:
            for path in paths:
                say(str(path))


def jobs_table(found: Sequence[Job], now: datetime) -> Listing:
    table = Listing("job", "provider", "state", "took", "image", "note")
    for job in found:
        name = job.input.file_name if job.input and job.input.file_name else ""
        error = job.error.message if job.error else None
        waits = waiting_text(job.waiting_for.reason) if job.waiting_for else None
        table.add_row(
            job.id,
            job.provider,
            state_text(job.state.value),
            age(job.created_at, job.finished_at or now),
            name,
            job_note(error, waits),
        )
    return table


def _change(context: typer.Context, jobs: Sequence[str], change: Change, as_json: bool, note: str = "") -> None:
    """
    Carry out *change* on each job, and print it with a *note*; a job that is refused is reported, and the others go on.

    The first one goes alone: it shows whether a receiver answers.
    """
    connection: Connection = context.obj

    async def work() -> int:
        async with connection.open(timeout=SHORT_TIMEOUT_SECONDS) as client:
            places = asyncio.Semaphore(_AT_ONCE)

            async def change_one(job_id: str) -> bool:
                async with places:
                    return await _changed(client, job_id, change, as_json, note, alone=len(jobs) == 1)

            done = [await change_one(jobs[0])]
            done += await asyncio.gather(*(change_one(job_id) for job_id in jobs[1:]))
            return done.count(False)

    if refused := run(work()):
        raise CommandFailed(f"{refused} of {len(jobs)} were refused")


async def _changed(client: AsyncClient, job_id: str, change: Change, as_json: bool, note: str, *, alone: bool) -> bool:
    """Carry out *change* on a job, and print it. Returns False if it was refused; of a job *alone*, that is raised."""
    try:
        job = await change(client, job_id)
    except RequestRefused as exc:
        if alone or isinstance(exc, Unauthorized | Overloaded):
            raise
        say(f"{job_id}: {exc}", err=True)
        return False
    if job is not None and as_json:
        typer.echo(as_text(job.to_json()))
    elif job is not None:
        again = f" (again: {job.resubmit_of})" if job.resubmit_of else ""
        say(f"{job.id} {job.state.value}{again}{note}")
    return True
