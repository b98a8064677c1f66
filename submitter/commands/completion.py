"""Arguments shared by several commands, and their shell completion: provider names, ids of the newest jobs."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from submitter.commands.names import complete_provider
from submitter.errors import SubmitterError
from submitter.sdk.async_client import AsyncClient

_NEWEST = 50
_PATIENCE_SECONDS = 2.0


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """Complete the ids of the newest jobs, with their states; none if no receiver answers at once."""
    try:
        return [found for found in asyncio.run(_newest()) if found[0].startswith(incomplete)]
    except (SubmitterError, OSError, TimeoutError):
        return []


async def _newest() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    async with asyncio.timeout(_PATIENCE_SECONDS), AsyncClient(timeout=_PATIENCE_SECONDS) as client:
        async for job in client.jobs():
            found.append((job.id, f"{job.provider} {job.state.value}"))
            if len(found) == _NEWEST:
                break
    return found


ProviderName = Annotated[
    str, typer.Option("--provider", help="Which API: see `submitter providers`.", autocompletion=complete_provider)
]
JobIds = Annotated[list[str], typer.Argument(help="The jobs' ids, job_…", autocompletion=complete_job)]
JobId = Annotated[str, typer.Argument(help="The job's id, job_…", autocompletion=complete_job)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
