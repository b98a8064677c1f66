"""`submitter wait`: until jobs have ended."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from submitter.commands.connection import CommandFailed, Connection, run
from submitter.commands.results import make_ready, naming
from submitter.errors import SubmitterError
from submitter.printing import json_text, say
from submitter.remote import Receiver


def wait(
    context: typer.Context,
    jobs: Annotated[list[str], typer.Argument(help="The jobs' ids, job_…")],
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds.")] = None,
    out: Annotated[Path | None, typer.Option(help="Save the results in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the jobs as JSON, one in each line.")] = False,
) -> None:
    """
    Wait until jobs have ended, and print their states. Exit status 0: all succeeded; 1: not all; 124: timeout.
    """
    connection: Connection = context.obj
    if out is not None:
        make_ready(out)
    run(_wait(connection, jobs, timeout, out, as_json))


async def _wait(
    connection: Connection, jobs: list[str], timeout: float | None, out: Path | None, as_json: bool
) -> None:
    if not connection.token:
        raise CommandFailed("there is no token; set SUBMITTER_TOKEN to one of RECEIVER_API_TOKENS", status=2)
    try:
        async with Receiver(connection.url, connection.token) as receiver, asyncio.timeout(timeout):
            ended = await asyncio.gather(*(_one(receiver, job, out, as_json) for job in jobs))
    except TimeoutError as exc:
        raise CommandFailed(f"not ended within {timeout:g} s", status=124) from exc
    except SubmitterError as exc:
        raise CommandFailed(str(exc)) from exc
    if not all(ended):
        unsaved = "" if out is None else ", or is not saved"
        raise CommandFailed(f"{sum(not good for good in ended)} of {len(ended)} did not succeed{unsaved}")


async def _one(receiver: Receiver, job_id: str, out: Path | None, as_json: bool) -> bool:
    """Wait for a job and tell of it. Whether it succeeded, and is saved if that is wanted."""
    job = await receiver.wait(job_id)
    good, saved = job.succeeded, list[str]()
    if out is not None and job.succeeded:
        try:
            with naming(job, out):
                saved = [str(path) for path in await receiver.save(job, out)]
        except CommandFailed as exc:
            say(str(exc), err=True)
            good = False
    if as_json:
        error = job.error and {"code": job.error.code, "message": job.error.message}
        shown = {"id": job.id, "provider": job.provider, "state": job.state.value, "error": error, "saved": saved}
        typer.echo(json_text(shown, indent=None))
    else:
        reason = f": {job.error.message}" if job.error else ""
        say(f"{job.id} {job.state.value}{reason}")
        for path in saved:
            say(path)
    return good
