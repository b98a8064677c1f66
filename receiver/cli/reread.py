"""`receiver reread`: read old evidence again, after a reader was fixed or a secret was corrected."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated

import typer

from receiver.cli.open_database import open_database
from receiver.cli.sandboxed import as_served
from receiver.domain.evidence import EvidenceFilter
from receiver.domain.jobs import Verdict
from receiver.parts import timing
from receiver.settings import load
from receiver.store.blobs import open_blobs
from receiver.store.jobs import JobStore
from receiver.upstream.reread import UNUSED, Reread, Rereading
from submitter.commands.names import check_provider
from submitter.moments import moment_option
from submitter.printing import failed
from submitter.providers import PROVIDERS


def reread(
    since: Annotated[
        str | None, typer.Option(help="Only evidence received at this time or later: 1h, 2d, 2026-01-31.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only of this provider.")] = None,
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also what was read without an error, not only what was unreadable or ignored."),
    ] = False,
    reverify: Annotated[
        bool, typer.Option("--reverify", help="Also callbacks that were refused: verify them with today's secrets.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read evidence again: after an update that fixed a reader, or once a webhook secret was corrected."""
    check_provider(provider)
    moment = moment_option("--since", since, datetime.now(UTC))
    refused = (Verdict.REFUSED,) if reverify else ()
    selection = EvidenceFilter(moment, provider, job, () if everything else (*UNUSED, *refused))
    found = asyncio.run(_run(selection, reverify=reverify, dry_run=dry_run))
    changed = sum(result.changed for result in found)
    if as_json:
        typer.echo(
            json.dumps({"items": [result.to_json() for result in found], "changed": changed, "dry_run": dry_run})
        )
        return
    for result in found:
        if result.changed or result.verdict is not result.evidence.verdict:
            events = f", {', '.join(result.events)}" if result.events else ""
            typer.echo(
                f"{result.evidence.job_id}  {result.evidence.provider} {result.evidence.source.value}  "
                f"{result.evidence.verdict.value} -> {result.verdict.value}{events}"
            )
    verdicts = ", ".join(f"{count} {name}" for name, count in Counter(result.verdict.value for result in found).items())
    typer.echo(f"{len(found)} read again ({verdicts or 'nothing to read'}), {changed} jobs changed" + _DRY[dry_run])


_DRY = {True: "; nothing was written", False: ""}


async def _run(selection: EvidenceFilter, *, reverify: bool, dry_run: bool) -> list[Reread]:
    settings, each = as_served(*load())
    providers = {name: PROVIDERS[name].from_settings(its) for name, its in each.items()}
    blobs = open_blobs(settings.data_dir, settings.blob_url)
    async with open_database(settings) as database:
        if selection.job_id is not None and await JobStore(database).job(selection.job_id) is None:
            raise failed(f"there is no job {selection.job_id}")
        store = JobStore(
            database,
            public_url=lambda: settings.public_url or "",
            first_delay_seconds=settings.retry_schedule[0],
        )
        rereading = Rereading(
            store,
            providers,
            blobs,
            confirm=settings.confirm,
            timing_of=lambda name: timing(settings, providers[name]),
        )
        run = rereading.run(selection, datetime.now(UTC), reverify=reverify, dry_run=dry_run)
        blobs.prepare()
        with contextlib.closing(blobs):
            return [found async for found in run]
