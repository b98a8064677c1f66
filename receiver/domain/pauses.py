"""A pause of a provider: its reason, and when one job may find out whether it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from receiver.domain.entity import iso

FIRST_PROBE = timedelta(seconds=30)
_LAST_PROBE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Pause:
    """`probes` were refused since it began."""

    reason: str
    since: datetime
    probe_at: datetime
    probes: int

    @property
    def delay(self) -> timedelta:
        doubled: int = 2 ** min(self.probes, 20)
        return min(FIRST_PROBE * doubled, _LAST_PROBE)

    def to_json(self) -> dict[str, str | None]:
        return {"reason": self.reason, "since": iso(self.since)}
