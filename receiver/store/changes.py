"""Changes since a place in the logs: jobs, deliveries, providers and endpoints, for pages that are being watched."""

from __future__ import annotations

from dataclasses import dataclass, field

from receiver.store.database import Database
from receiver.store.statements import Fetch, Work, first

_MOST = 500


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the logs: the last event's position, the last ids of evidence and attempts."""

    event: int
    evidence: int
    attempt: int


@dataclass(slots=True)
class Changed:
    """The things that changed. `jobs` are ids; None: too many to name."""

    jobs: set[str] | None = field(default_factory=set)
    deliveries: bool = False
    providers: bool = False
    endpoints: bool = False

    def __bool__(self) -> bool:
        return self.jobs is None or bool(self.jobs) or self.deliveries or self.providers or self.endpoints


class ChangeLog:
    """Reads the ends of the logs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def place(self) -> Place:
        """Return the current end of the logs."""
        row = await self._database.read(lambda: first(_ENDS))
        return Place(*row)

    async def after(self, place: Place) -> tuple[Changed, Place]:
        """Return the changes written after *place*, and the new end."""

        def work() -> Work[tuple[Changed, Place]]:
            ends = Place(*(yield from first(_ENDS)))
            changed = Changed()
            if ends == place:
                return changed, ends
            events = yield Fetch(_EVENTS, (place.event, _MOST))
            evidence = yield Fetch(_EVIDENCE, (place.evidence, _MOST))
            attempts = yield Fetch(_ATTEMPTS, (place.attempt, _MOST))
            jobs = {row[1] for row in events} | {row[0] for row in evidence} | {row[0] for row in attempts}
            full = _MOST in (len(events), len(evidence), len(attempts))
            changed.jobs = None if full else jobs - {None}
            changed.deliveries = bool(events or attempts)
            changed.providers = full or any(row[0].startswith("provider.") for row in events)
            changed.endpoints = bool(attempts) or any(row[0].startswith("endpoint.") for row in events)
            return changed, ends

        return await self._database.read(work)


_ENDS = (
    "SELECT (SELECT coalesce(max(position), 0) FROM events), (SELECT coalesce(max(id), 0) FROM evidence),"
    " (SELECT coalesce(max(id), 0) FROM attempts)"
)
_EVENTS = "SELECT type, job_id FROM events WHERE position > ? ORDER BY position LIMIT ?"
_EVIDENCE = "SELECT job_id FROM evidence WHERE id > ? ORDER BY id LIMIT ?"
_ATTEMPTS = (
    "SELECT d.job_id FROM attempts a LEFT JOIN deliveries d ON d.id = a.delivery_id"
    " WHERE a.id > ? ORDER BY a.id LIMIT ?"
)
