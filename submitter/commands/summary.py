"""The summary of a batch: a table for people, an object for programs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from submitter.commands.sources import Item, PassedOver
from submitter.printing import fields_table, print_table
from submitter.sdk.values import Job
from submitter.vocabulary import Cost


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an item. `state` is the job's, or `refused` (no job) or `unsaved` (paid for, not downloaded yet)."""

    item: Item
    state: str
    job: Job | None = None
    reason: str | None = None
    saved: tuple[str, ...] = ()

    @classmethod
    def of(cls, item: Item, job: Job, *, saved: tuple[str, ...] = ()) -> Ended:
        reason = None if job.error is None else f"{job.error.message} ({job.error.code})"
        return cls(item, job.state.value, job, reason, saved)

    def to_json(self) -> dict[str, Any]:
        return {
            "image": str(self.item.image),
            "name": self.item.name,
            "job": self.job and self.job.id,
            "state": self.state,
            "reason": self.reason,
            "saved": list(self.saved),
            "cost": _cost(self.job.cost) if self.job and self.job.cost else None,
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run, its items in order."""

    provider: str
    items: Sequence[Ended]
    seconds: float
    passed_over: Sequence[PassedOver] = ()

    @property
    def failed(self) -> list[Ended]:
        return [ended for ended in self.items if ended.state != "succeeded"]

    def cost(self) -> dict[str, Decimal]:
        """The cost by unit, of the jobs whose providers report it."""
        sums: dict[str, Decimal] = defaultdict(Decimal)
        for ended in self.items:
            if ended.job and ended.job.cost:
                sums[ended.job.cost.unit] += ended.job.cost.amount
        return dict(sums)

    def to_json(self) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "succeeded": len(self.items) - len(self.failed),
            "failed": len(self.failed),
            "passed_over": [{"image": passed.path, "reason": passed.reason} for passed in self.passed_over],
            "cost": [_cost(Cost(amount, unit)) for unit, amount in self.cost().items()],
            "seconds": round(self.seconds, 3),
            "items": [ended.to_json() for ended in self.items],
        }

    def show(self) -> None:
        table = fields_table()
        table.add_row("succeeded", str(len(self.items) - len(self.failed)))
        table.add_row("failed", str(len(self.failed)))
        reasons: dict[str, list[str]] = defaultdict(list)
        for ended in self.failed:
            reasons[f"{ended.state}: {ended.reason or 'no reason was given'}"].append(ended.item.name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            table.add_row("", f"{len(names)} {reason}: {', '.join(names[:3])}{more}", style="red")
        if self.passed_over:
            table.add_row("not sent", str(len(self.passed_over)))
            for passed in self.passed_over:
                table.add_row("", f"{passed.path}: {passed.reason}", style="yellow")
        cost = ", ".join(f"{amount:f} {unit}" for unit, amount in self.cost().items())
        table.add_row("cost", cost or "unknown")
        table.add_row("time", f"{self.seconds:.1f} s")
        print_table(table)


def _cost(cost: Cost) -> dict[str, str]:
    return {"amount": format(cost.amount, "f"), "unit": cost.unit}
