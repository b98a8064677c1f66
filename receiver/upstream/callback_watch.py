"""
Detection of providers whose callbacks stop arriving; their jobs are polled early until they arrive again.

Processes that read evidence judge; all others learn of it from the table `providers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import structlog

from receiver.runtime.loops import Loop
from receiver.runtime.wakes import Wakes
from receiver.upstream.slots import ProviderSlot
from receiver.upstream.statistics import ProviderStatistics

log = structlog.get_logger("receiver.callback_watch")

_SECONDS = 5.0


class CallbackWatch:
    """Updates `degraded` of each slot from the statistics."""

    def __init__(
        self,
        statistics: ProviderStatistics,
        slots: Mapping[str, ProviderSlot],
        wakes: Wakes,
        *,
        judges: bool = True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._statistics = statistics
        self._slots = slots
        self._wakes = wakes
        self._judges = judges
        self._clock = clock
        self.loop = Loop("statistics", self.step, idle_seconds=_SECONDS)
        self._note()

    async def step(self) -> float:
        await self._statistics.load()
        for name, slot in self._slots.items():
            if self._judges and slot.provider.callbacks and await self._statistics.judge(name, self._clock()):
                log.warning("callbacks_degraded", provider=name)
                self._wakes.events_written()
        self._note()
        return _SECONDS

    def _note(self) -> None:
        for name, slot in self._slots.items():
            slot.degraded = name in self._statistics.degraded
