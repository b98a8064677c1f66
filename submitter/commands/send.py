"""`submitter send`: one image, from here to its result."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from submitter.commands.connection import CommandFailed, Connection, Job, Remote, run
from submitter.commands.options import parse_options
from submitter.commands.results import save, stem_of

TERMINAL = ("succeeded", "failed", "expired", "canceled")


def send(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="A file, or the http(s) address of one.")],
    provider: Annotated[str, typer.Option(help="Which API: see `submitter providers`.")],
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="A provider option as name=value; may be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    out: Annotated[Path | None, typer.Option(help="Wait, and save the results in this directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the job as JSON.")] = False,
) -> None:
    """Send one image. Exit status 1: refused, failed, or not kept."""
    connection: Connection = context.obj
    run(_send(connection, _source(image), provider, parse_options(option or ()), wait or out is not None, out, as_json))


def _source(image: str) -> Path | str:
    if image.startswith(("http://", "https://")):
        return image
    path = Path(image)
    if not path.is_file():
        raise CommandFailed(f"{image} is not a file", status=2)
    return path


async def _send(
    connection: Connection,
    image: Path | str,
    provider: str,
    options: dict[str, Any],
    wait: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    console = Console(stderr=True)
    saved: list[Path] = []
    async with connection.open() as remote:
        with console.status(f"sending to {provider}") as status:
            job = await remote.submit(image, provider=provider, options=options)
            status.update(f"{job['id']} {job['state']}")
            if wait:
                job = await _ended(remote, job, lambda now: status.update(f"{now['id']} {now['state']}"))
            if out is not None and job["state"] == "succeeded":
                status.update(f"{job['id']} saving")
                saved = await save(remote, job, out, stem_of(image))
                job = await remote.job(job["id"])
    if as_json:
        typer.echo(json.dumps({**job, "saved": [str(path) for path in saved]}, ensure_ascii=False, indent=2))
    else:
        _tell(job, saved)
    if wait and job["state"] != "succeeded":
        raise CommandFailed(_reason(job))


async def _ended(remote: Remote, job: Job, told: Any) -> Job:
    pause = 0.2
    while job["state"] not in (*TERMINAL, "unconfirmed"):
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 3.0)
        job = await remote.job(job["id"])
        told(job)
    return job


def _tell(job: Job, saved: list[Path]) -> None:
    cost = f", {job['cost']['amount']} {job['cost']['unit']}" if job["cost"] else ""
    typer.echo(f"{job['id']} {job['state']}{cost}")
    for path in saved:
        typer.echo(str(path))


def _reason(job: Job) -> str:
    if job["error"] is None:
        return f"{job['id']} is {job['state']}"
    return f"{job['id']} is {job['state']}: {job['error']['message']} ({job['error']['code']})"
