"""Bounds on the refused callbacks that are kept. They limit what is written, never the answers."""

from __future__ import annotations

from receiver.runtime.token_bucket import Bucket
from submitter.provider_settings import Rate

OF_A_SOURCE = Rate(20, 60)
IN_ALL = Rate(200, 60)
BYTES_OF_A_SOURCE = Rate(4 * 1024 * 1024, 86_400)
BYTES_IN_ALL = Rate(64 * 1024 * 1024, 86_400)
MOST_SOURCES = 1024


class KeptRefusals:
    """Limits the number and bytes of refused callbacks that are kept, for each source and in all."""

    def __init__(self) -> None:
        self._all = (Bucket([IN_ALL]), Bucket([BYTES_IN_ALL]))
        self._sources: dict[str, tuple[Bucket, Bucket]] = {}

    @property
    def sources(self) -> int:
        """The number of remembered sources: at most `MOST_SOURCES`, the oldest is forgotten first."""
        return len(self._sources)

    def may_keep(self, source: str, size: int) -> bool:
        """Return whether another refusal of *size* bytes may be kept; if so, count it."""
        if source not in self._sources:
            if len(self._sources) >= MOST_SOURCES:
                self._sources.pop(next(iter(self._sources)))
            self._sources[source] = (Bucket([OF_A_SOURCE]), Bucket([BYTES_OF_A_SOURCE]))
        buckets = (*self._all, *self._sources[source])
        wanted = (1, size, 1, size)
        if any((bucket.available() or 0) < count for bucket, count in zip(buckets, wanted, strict=True)):
            return False
        for bucket, count in zip(buckets, wanted, strict=True):
            bucket.take(count)
        return True
