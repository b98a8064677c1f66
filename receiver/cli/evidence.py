"""`receiver evidence`: the evidence about a job, as a table, as the API shows it, and byte for byte."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import Annotated

import typer

from receiver.cli.completion import JobId
from receiver.cli.open_database import open_database
from receiver.domain.evidence import Evidence
from receiver.domain.redaction import evidence_to_json, redact
from receiver.settings import load
from receiver.store.blobs import Blobs
from receiver.store.evidence import EvidenceLog
from receiver.store.jobs import JobStore
from submitter.printing import Listing, failed, print_fields, print_json, print_table

evidence = typer.Typer(no_args_is_help=True, help="Show callbacks, poll answers and submit answers as they came.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Number = Annotated[int, typer.Argument(help="The number of a piece, from `receiver evidence list`.")]
_PAGE = 200


@evidence.command(name="list")
def list_evidence(job: JobId, as_json: AsJson = False) -> None:
    """List what came in about a job, oldest first."""
    found, keys = asyncio.run(_of_job(job))
    if as_json:
        print_json({"items": [evidence_to_json(piece, keys) for piece in found]})
        return
    table = Listing("number", "received", "source", "status", "verdict", "trust", "bytes", "note")
    for piece in found:
        table.add_row(
            str(piece.id),
            f"{piece.received_at:%Y-%m-%d %H:%M:%S}Z",
            piece.source.value,
            str(piece.status or ""),
            piece.verdict.value,
            piece.trust.value if piece.trust else "",
            str(len(piece.body)),
            redact(piece.note) if piece.note else "",
        )
    print_table(table, empty="nothing came in about it yet")


@evidence.command()
def show(job: JobId, number: Number, as_json: AsJson = False) -> None:
    """Show one piece with its headers and body, secrets masked."""
    found, keys = asyncio.run(_of_job(job, number))
    shown = evidence_to_json(found[0], keys)
    if as_json:
        print_json(shown)
        return
    headers = shown.pop("headers")
    print_fields(shown)
    print_fields(dict(headers))


@evidence.command()
def raw(
    job: JobId,
    number: Number,
    headers: Annotated[bool, typer.Option("--headers", help="The headers instead, a line each.")] = False,
) -> None:
    """Write the body to standard output, byte for byte and unmasked: it may hold links that are secrets."""
    ((piece,), _) = asyncio.run(_of_job(job, number))
    out = sys.stdout.buffer
    if headers:
        for name, value in piece.raw_headers():
            out.write(name + b": " + value + b"\n")
    else:
        out.write(piece.body)
    out.flush()


async def _of_job(job_id: str, number: int | None = None) -> tuple[list[Evidence], list[str]]:
    """Return the evidence of a job (or piece *number* of it) with whole bodies, and the keys to mask in it."""
    settings, each = load()
    keys = [its.api_key.get_secret_value() for its in each.values() if its.api_key]
    blobs, found = Blobs(settings.data_dir), list[Evidence]()
    async with open_database(settings) as database:
        if await JobStore(database).job(job_id) is None:
            raise failed(f"there is no job {job_id}", code="not_found")
        log, after = EvidenceLog(database), 0
        while page := await log.of(job_id, after=after, limit=_PAGE):
            after = page[-1].id or 0
            found += [await _whole(piece, blobs) for piece in page if number in (None, piece.id)]
    if number is not None and not found:
        raise failed(f"{job_id} has no evidence with the number {number}", code="not_found")
    return found, keys


async def _whole(piece: Evidence, blobs: Blobs) -> Evidence:
    if piece.body_name is None:
        return piece
    try:
        return replace(piece, body=await blobs.read_body(piece.body_name))
    except FileNotFoundError:
        return piece
