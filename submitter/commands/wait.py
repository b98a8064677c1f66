"""`submitter wait`: until jobs have ended."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from submitter.commands.completion import JobIds
from submitter.commands.connection import CommandFailed, Connection, run
from submitter.commands.results import make_ready, naming
from submitter.printing import json_text, say
from submitter.sdk.async_client import AsyncClient


def wait(
    context: typer.Context,
    jobs: JobIds,
    timeout: Annotated[float | None, typer.Option(min=0, help="Give up after this many seconds.")] = None,
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
    try:
        async with connection.open() as client, asyncio.timeout(timeout):
            ended = await asyncio.gather(*(_wait_for(client, job, out, as_json) for job in jobs))
    except TimeoutError as exc:
        raise CommandFailed(f"not ended within {timeout:g} s", status=124, code="timeout") from exc
    if not all(ended):
        unsaved = "" if out is None else ", or is not saved"
        raise CommandFailed(f"{sum(not good for good in ended)} of {len(ended)} did not succeed{unsaved}")


async def _wait_for(client: AsyncClient, job_id: str, out: Path | None, as_json: bool) -> bool:
    """Wait for a job and print it. Returns whether it succeeded, and was saved if requested."""
    job = await client.wait(job_id)
    good, saved = job.succeeded, list[str]()
    if out is not None and job.succeeded:
        try:
            with naming(job, out):
                saved = [str(path) for path in await client.save(job, out)]
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
