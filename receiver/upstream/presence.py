"""
Providers that have a key, known to every process.

The public side holds no provider key, and yet must report which providers accept jobs. Processes that submit record the
providers for which they have a key; the others read this. A key that no process has had for a day no longer counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from receiver.runtime.loops import Loop
from receiver.store.providers import ProviderTable
from receiver.upstream.slots import ProviderSlot

_WRITTEN_SECONDS = 15.0
_READ_SECONDS = 2.0
_COUNTS_FOR = timedelta(days=1)


class ProviderPresence:
    """Records (where the process *works*) or reads which providers have a key, and sets `configured` of each slot."""

    def __init__(
        self,
        slots: Mapping[str, ProviderSlot],
        table: ProviderTable,
        *,
        works: bool,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._slots = slots
        self._table = table
        self._works = works
        self._own = frozenset(name for name, slot in slots.items() if slot.configured)
        self._reported = False
        self._clock = clock
        self.loop = Loop("presence", self.step, idle_seconds=_WRITTEN_SECONDS if works else _READ_SECONDS)

    async def has_key(self, provider: str) -> bool | None:
        """
        Return whether any process that submits has a key for *provider* now; None before any has recorded its keys.

        Between the start of the public side and that of the first worker nothing is known, and nothing can be refused.
        """
        slot = self._slots[provider]
        if slot.configured or self._works:
            return slot.configured
        await self.step()
        return slot.configured if self._reported else None

    async def step(self) -> float:
        now = self._clock()
        if self._works:
            await self._table.note_keys(sorted(self._own), now)
            return _WRITTEN_SECONDS
        elsewhere = await self._table.with_keys(now - _COUNTS_FOR)
        self._reported = bool(self._own or elsewhere)
        for name, slot in self._slots.items():
            slot.configured = name in self._own or name in elsewhere
        return _READ_SECONDS
