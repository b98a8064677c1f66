"""`submitter send`: one image, from here to its result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from submitter.commands.completion import ProviderName
from submitter.commands.connection import CommandFailed, Connection, as_text, job_to_json, reason, run
from submitter.commands.names import check_provider
from submitter.commands.options import parse_options
from submitter.commands.results import make_ready, naming, stem_of
from submitter.commands.waits import Waits
from submitter.file_names import is_url
from submitter.printing import say
from submitter.sdk.values import Job
from submitter.system_errors import described

_SUBMIT_SECONDS = 45.0
"""For the receiver to answer: it may be restarting, or fetching an input URL, for which it takes up to 30 s."""


def send(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="A file, or the http(s) URL of one.")],
    provider: ProviderName,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="A provider option as name=value; may be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    out: Annotated[Path | None, typer.Option(help="Wait, and save the results in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the job as JSON.")] = False,
) -> None:
    """Send one image. Exit status 1: refused, failed, or not kept."""
    connection: Connection = context.obj
    check_provider(provider)
    options = parse_options(provider, option or ())
    source = _source(image)
    if out is not None:
        make_ready(out)
    job, saved = run(_send(connection, source, provider, options, wait or out is not None, out))
    try:
        _print(job, saved, as_json)
    except OSError as exc:
        raise CommandFailed(f"{job.id} was sent, but standard output can't be written: {described(exc)}") from exc
    if (wait or out is not None) and not job.succeeded:
        raise CommandFailed(reason(job), code=job.error.code if job.error else job.state.value)


def _print(job: Job, saved: Sequence[Path], as_json: bool) -> None:
    if as_json:
        typer.echo(as_text(job_to_json(job, saved)))
        return
    cost = f", {job.cost.amount:f} {job.cost.unit}" if job.cost else ""
    say(f"{job.id} {job.state.value}{cost}")
    for path in saved:
        say(str(path))


def _source(image: str) -> Path | str:
    if is_url(image):
        return image
    path = Path(image)
    if not path.is_file():
        raise CommandFailed(f"{image} is not a file", status=2)
    return path


async def _send(
    connection: Connection, image: Path | str, provider: str, options: dict[str, Any], wait: bool, out: Path | None
) -> tuple[Job, list[Path]]:
    saved: list[Path] = []
    async with connection.open() as client:
        with connection.status(f"sending to the receiver, for {provider}") as status:
            try:
                job = await client.submit(provider, image, options=options, timeout=_SUBMIT_SECONDS)
            except asyncio.CancelledError:
                say("it may have been sent; see `submitter list` before it is sent again", err=True)
                raise
            with naming(job, out):
                if wait:
                    status.update(f"{job.id} is with {provider}")
                    async with Waits(client, provider, connection.note).explained(job):
                        job = await client.wait(job)
                if out is not None and job.succeeded:
                    status.update(f"{job.id} is done, saving")
                    saved = await client.save(job, out, stem=stem_of(image))
                    job = await client.job(job)
    return job, saved
