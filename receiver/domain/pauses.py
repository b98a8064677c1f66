"""A pause of a provider: its reason, and when a job may find out whether it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from receiver.domain.entity import iso

FIRST_PROBE = timedelta(seconds=30)
_LAST_PROBE = timedelta(hours=1)
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
"""The probe time of a pause by an operator: the operator resumes the provider."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause. `probes` is the number of jobs refused since it began."""

    reason: str
    since: datetime
    probe_at: datetime
    probes: int

    @property
    def by_operator(self) -> bool:
        return self.probe_at >= NEVER

    @property
    def delay(self) -> timedelta:
        doubled: int = 2 ** min(self.probes, 20)
        return min(FIRST_PROBE * doubled, _LAST_PROBE)

    def to_json(self) -> dict[str, str | None]:
        return {"reason": self.reason, "since": iso(self.since)}
