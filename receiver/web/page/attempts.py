"""A limit on sign-in attempts: after a few wrong tokens, a source has to wait."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from receiver.runtime.token_bucket import Bucket
from submitter.provider_settings import Rate

_WRONG = Rate(10, 300)
_WRONG_IN_ALL = Rate(200, 300)
_MOST_SOURCES = 1000


class Attempts:
    """Counts wrong tokens by source, and in all; a right one costs nothing."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = Bucket([_WRONG_IN_ALL], clock=clock)
        self._sources: OrderedDict[str, Bucket] = OrderedDict()

    def wait_seconds(self, peer: str | None) -> float:
        """Return how long *peer* has to wait before it may try again; 0: not at all."""
        return max(self._all.seconds_to_next(), self._bucket(peer).seconds_to_next())

    def wrong(self, peer: str | None) -> None:
        self._all.take()
        self._bucket(peer).take()

    def _bucket(self, peer: str | None) -> Bucket:
        source = _source(peer)
        bucket = self._sources.pop(source, None) or Bucket([_WRONG], clock=self._clock)
        self._sources[source] = bucket
        while len(self._sources) > _MOST_SOURCES:
            self._sources.popitem(last=False)
        return bucket


def _source(peer: str | None) -> str:
    """Return the address; for IPv6 its /64 network, which belongs to a single customer."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return "?"
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
