"""Hourly sums: jobs created and finished, turnaround times, callbacks, deliveries and costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

HOUR = timedelta(hours=1)
_CALLBACKS = ("received", "refused", "late", "awaited", "lost")


@dataclass(slots=True)
class Sums:
    """
    Sums over one hour or several.

    `turnaround` counts finished jobs by how long they took, in milliseconds, rounded down to two digits.
    `callbacks` counts `received`, `refused`, `late`, and of the finished jobs `awaited` and `lost`.
    `attempts` counts `delivered` and `failed` tries of deliveries. `cost` is by unit.
    """

    created: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    turnaround: dict[int, int] = field(default_factory=dict)
    callbacks: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    cost: dict[str, Decimal] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        """Add the sums of another hour or provider."""
        self.created += other.created
        for name in ("finished", "turnaround", "callbacks", "attempts", "cost"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0) + value

    def turnaround_seconds(self, share: float) -> float | None:
        """The time within which *share* of the finished jobs finished; None if there were none."""
        total = sum(self.turnaround.values())
        passed = 0
        for milliseconds, count in sorted(self.turnaround.items()):
            passed += count
            if passed >= share * total:
                return milliseconds / 1000
        return None

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "created": self.created,
            "finished": self.finished,
            "turnaround": {str(key): count for key, count in sorted(self.turnaround.items())},
            "callbacks": self.callbacks,
            "attempts": self.attempts,
            "cost": {unit: format(amount, "f") for unit, amount in self.cost.items()},
        }

    def shown(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "created": self.created,
            "finished": self.finished,
            "turnaround_seconds": {"p50": self.turnaround_seconds(0.5), "p95": self.turnaround_seconds(0.95)},
            "callbacks": {name: self.callbacks.get(name, 0) for name in _CALLBACKS},
            "cost": {unit: format(amount, "f") for unit, amount in self.cost.items()},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Sums:
        return cls(
            created=stored["created"],
            finished=dict(stored["finished"]),
            turnaround={int(key): count for key, count in stored["turnaround"].items()},
            callbacks=dict(stored["callbacks"]),
            attempts=dict(stored["attempts"]),
            cost={unit: Decimal(amount) for unit, amount in stored["cost"].items()},
        )


def total(several: Iterable[Sums]) -> Sums:
    """All of them together."""
    result = Sums()
    for sums in several:
        result.add(sums)
    return result


def hour_of(moment: datetime) -> datetime:
    """The beginning of its hour."""
    return moment.replace(minute=0, second=0, microsecond=0)
