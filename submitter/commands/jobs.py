"""`submitter list | show | cancel | poll | resubmit | download`: jobs of a running receiver."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from submitter.commands.completion import AsJson, JobId, JobIds, complete_provider
from submitter.commands.connection import SHORT_TIMEOUT_SECONDS, CommandFailed, Connection, as_text, job_to_json, run
from submitter.commands.options import check_provider
from submitter.commands.results import make_ready, naming, stem_of
from submitter.errors import Overloaded, RequestRefused, Unauthorized
from submitter.moments import moment_option
from submitter.printing import Listing, age, job_note, print_fields, print_table, say, state_text
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.values import Job
from submitter.vocabulary import State

Change = Callable[[AsyncClient, str], Awaitable[Job]]


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
        print_table(jobs_table(found, now))


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
        print_fields(found.to_json())


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


def poll(context: typer.Context, jobs: JobIds, as_json: AsJson = False) -> None:
    """Ask the provider for the state of jobs now; for lost images, ask for fresh links."""
    _change(context, jobs, lambda client, job: client.poll(job), as_json)


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
                    saved.append((job, await client.save(job, out, stem=_stem(job))))
        return saved

    for job, paths in run(work()):
        if as_json:
            typer.echo(as_text(job_to_json(job, paths)))
        else:
            for path in paths:
                say(str(path))


def jobs_table(found: Sequence[Job], now: datetime) -> Listing:
    table = Listing("job", "provider", "state", "age", "image", "note")
    for job in found:
        name = job.input.file_name if job.input and job.input.file_name else ""
        error = job.error.message if job.error else None
        waits = job.waiting_for.reason if job.waiting_for else None
        table.add_row(
            job.id,
            job.provider,
            state_text(job.state.value),
            age(job.created_at, job.finished_at or now),
            name,
            job_note(error, waits),
        )
    return table


def _change(context: typer.Context, jobs: Sequence[str], change: Change, as_json: bool) -> None:
    """Carry out *change* on each job; a job that is refused is reported, and the others go on."""
    connection: Connection = context.obj

    async def work() -> int:
        refused = 0
        async with connection.open(timeout=SHORT_TIMEOUT_SECONDS) as client:
            for job_id in jobs:
                try:
                    job = await change(client, job_id)
                except RequestRefused as exc:
                    if len(jobs) == 1 or isinstance(exc, Unauthorized | Overloaded):
                        raise
                    refused += 1
                    say(f"{job_id}: {exc}", err=True)
                    continue
                if as_json:
                    typer.echo(as_text(job.to_json()))
                else:
                    again = f" (again: {job.resubmit_of})" if job.resubmit_of else ""
                    say(f"{job.id} {job.state.value}{again}")
        return refused

    if refused := run(work()):
        raise CommandFailed(f"{refused} of {len(jobs)} were refused")


def _stem(job: Job) -> str:
    name = job.input.file_name if job.input else None
    return stem_of(Path(name)) if name else job.id
