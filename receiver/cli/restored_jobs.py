"""
Queued jobs of a restored backup, which must not be sent as if nothing had happened since.

The backup can't know what the receiver did after it was made: a job that is queued in it may have been sent since, and
billed. Such a job becomes `unconfirmed`. A callback still reaches it, since its callback URL is signed over its id;
otherwise an operator resubmits it or gives it up.

Readers of events may have seen events that the backup lacks. Positions continue far above all that can have been given,
so that such a reader is recognized and sent back to the backup's last event.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from receiver.domain.jobs import Job
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.parts import timing
from receiver.settings import Settings
from receiver.store.database import open_database
from receiver.store.events import Events
from receiver.store.jobs import JobStore
from receiver.store.settling import JobUpdate
from submitter.provider_settings import ProviderSettings
from submitter.providers import PROVIDERS
from submitter.vocabulary import Failure, Report, State

_PAGE = 200
_RESTORED = Failure(
    "restored",
    "it was queued in the backup that was restored; it may have been sent, and billed, since that was made",
    permanent=False,
)


async def hold_queued(path: Path, settings: Settings, each: Mapping[str, ProviderSettings]) -> list[Job]:
    """
    Make every queued job of the database at *path* `unconfirmed`, and begin a new range of positions.

    Returns the jobs, oldest first.
    """
    doubt = Update(Report(None, State.UNCONFIRMED, error=_RESTORED), None, last_error=_RESTORED.message)

    def timing_of(provider: str) -> Timing:
        return timing(settings, PROVIDERS[provider].from_settings(each[provider]))

    held: list[Job] = []
    database = await open_database(path)
    try:
        events = Events(database)
        newest = await events.newest()
        store = JobStore(
            database,
            public_url=lambda: settings.public_url or "",
            first_delay_seconds=settings.retry_schedule[0],
        )
        while found := await store.jobs(states=[State.QUEUED.value], limit=_PAGE):
            await store.settle([JobUpdate(job.id, doubt) for job, _ in found], datetime.now(UTC), timing_of)
            held += [job for job, _ in found]
        if newest:
            await events.begin_range(newest, datetime.now(UTC))
    finally:
        await database.close()
    return sorted(held, key=lambda job: job.id)
