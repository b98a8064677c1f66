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
from submitter.printing import CommandFailed, failed
from submitter.providers import PROVIDERS

_NEWEST = 50


def complete_provider(incomplete: str) -> list[str]:
    return [name for name in PROVIDERS if name.startswith(incomplete)]


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


def check_provider(name: str | None) -> None:
    """Raise `CommandFailed` for a name that no provider has."""
    if name is not None and name not in PROVIDERS:
        raise failed(f"there is no provider {name!r}; use one of {', '.join(PROVIDERS)}", status=2)


JobId = Annotated[str, typer.Argument(help="The job's id, job_…", autocompletion=complete_job)]
ProviderName = Annotated[str, typer.Argument(help="The provider's name.", autocompletion=complete_provider)]
