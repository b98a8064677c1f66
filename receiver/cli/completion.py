"""Arguments shared by several commands, and their shell completion: provider names, ids of the newest jobs."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from receiver.cli.open_database import open_database
from receiver.runtime.data_dir import DataUnusable
from receiver.settings import SettingsInvalid
from receiver.store.errors import StoreError
from receiver.store.jobs import JobStore
from submitter.commands.names import complete_provider
from submitter.printing import CommandFailed

_NEWEST = 50


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """Complete the ids of the newest jobs, with their states; none if there is no database."""
    try:
        return [found for found in asyncio.run(_newest()) if found[0].startswith(incomplete)]
    except (CommandFailed, SettingsInvalid, DataUnusable, StoreError, OSError):
        return []


async def _newest() -> list[tuple[str, str]]:
    async with open_database() as database:
        found = await JobStore(database).jobs(limit=_NEWEST)
    return [(job.id, f"{job.provider} {job.state.value}") for job, _ in found]


JobId = Annotated[str, typer.Argument(help="The job's id, job_…", autocompletion=complete_job)]
ProviderName = Annotated[str, typer.Argument(help="The provider's name.", autocompletion=complete_provider)]
