"""
Deliveries that go from the transaction that writes them straight to the notifier of the same process.

Theory. Such a delivery is written with this process's lease on it, and is handed over after the commit: it is never
claimed, and no query searches for it. If the process dies before the outcome is booked, the lease lapses and another
process claims it, as after any other crash.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from receiver.domain.deliveries import Delivery


class Handover:
    """Closed until a notifier runs, and once it stops: then every delivery waits in the database to be claimed."""

    def __init__(self) -> None:
        self.owner = secrets.token_hex(8)
        """What names this process in leases of deliveries."""
        self._room: Callable[[str], int] = _none
        self._take: Callable[[Sequence[Delivery]], None] | None = None

    def open(self, room: Callable[[str], int], take: Callable[[Sequence[Delivery]], None]) -> None:
        """Ask *room* how many deliveries a lane may be handed, and give them to *take*."""
        self._room, self._take = room, take

    def close(self) -> None:
        self._room, self._take = _none, None

    def room(self, lane: str) -> int:
        return self._room(lane)

    def hand_over(self, deliveries: Sequence[Delivery]) -> None:
        """Give the notifier what is committed."""
        if deliveries and self._take is not None:
            self._take(deliveries)


def _none(lane: str) -> int:
    return 0
