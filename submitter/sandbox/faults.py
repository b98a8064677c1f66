"""
Faults on demand: their kinds, how often they occur, and for which provider.

A chance is an int ("the next N", then never again) or a float between 0 and 1 (a probability). `1` strikes once,
`1.0` strikes always.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a chance is an int (the next N) or a float between 0 and 1 (a probability)")
    return value


def _in_range(value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and not value <= 1):
        raise ValueError("a count is 0 or more, a probability is between 0.0 and 1.0")
    return value


Chance = Annotated[int | float, BeforeValidator(_number), AfterValidator(_in_range)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Faults(BaseModel):
    """Every fault the sandbox knows; all off by default. `per_provider` overrides the fields that it sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Before a submit call is read: not accepted. The first of these that strikes is the answer.
    reset_before: Chance = 0
    """The connection is reset before anything is accepted."""
    bad_gateway: Chance = 0
    """502 with an HTML page."""
    unavailable: Chance = 0
    """503 with Retry-After."""
    busy: Chance = 0
    """429 with Retry-After."""
    server_error: Chance = 0
    """500 in the provider's documented shape."""
    bad_key: Chance = 0
    """401 although the key is good."""
    no_credit: Chance = 0
    """The provider's answer for an empty balance."""

    # Once a submit is accepted: the task exists, runs, and is billed.
    early: Chance = 0
    """The task runs at once, and its callbacks are sent before the submit answer leaves."""
    accept_then_reset: Chance = 0
    """The connection is reset instead of an answer."""
    accept_then_bad_gateway: Chance = 0
    """502 with an HTML page instead of an answer."""
    hang: Chance = 0
    """No answer for `hang_seconds`, then the connection is cut."""
    unreadable: Chance = 0
    """A 2xx answer whose JSON is cut short."""
    late_answer_seconds: Seconds = 0.0
    """Every submit answer is delayed by this; the task runs meanwhile."""

    # The task itself.
    fail: Chance = 0
    """The task ends failed."""
    stuck: Chance = 0
    """The task never leaves its running state (a synchronous provider never answers)."""
    dead_links: Chance = 0
    """The task's result links are expired from the start."""

    # Callbacks. All but `reorder` and `forge` are decided for each callback, these two for each task.
    lose: Chance = 0
    """Never sent, retries included."""
    duplicate: Chance = 0
    """Sent twice; a signed one with its own delivery id and signature each time."""
    replay: Chance = 0
    """Sent twice, byte for byte, headers included."""
    reorder: Chance = 0
    """Held back until the end, then sent last state first (providers with several callbacks only)."""
    forge: Chance = 0
    """A forged success is sent while the task runs: wrongly signed, and with a foreign result link."""
    delay_seconds: Seconds = 0.0
    """Every callback is delayed by this."""

    # Status calls.
    status_reset: Chance = 0
    status_bad_gateway: Chance = 0
    status_unavailable: Chance = 0
    status_busy: Chance = 0
    status_server_error: Chance = 0
    status_unreadable: Chance = 0

    # Details of the above.
    retry_after_seconds: Seconds = 1.0
    hang_seconds: Seconds = 3600.0

    per_provider: dict[str, Faults] = Field(default_factory=dict)


class Dice:
    """
    Decides when a fault strikes. A top-level count is shared by all providers; one in `per_provider` is its own.

    With a seed, the n-th submit call of a provider, and the n-th task, meet the same probabilities in every run,
    however requests and tasks interleave: each decision is drawn from its own name, not from one common sequence.
    """

    def __init__(self, faults: Faults, seed: int) -> None:
        self._seed = seed
        self.reset(faults)

    def reset(self, faults: Faults) -> None:
        """Replace all faults; counts and random sequences start over."""
        self.faults = faults
        self._left: dict[tuple[str, str], int] = {}
        self._rolls: Counter[tuple[str, str, int]] = Counter()
        self.struck: dict[tuple[str, str], int] = {}

    def strikes(self, provider: str, fault: str, task_number: int = 0) -> bool:
        """Roll for *fault* once, of a call (0) or of a task; a count that strikes is one lower afterwards."""
        scope, chance = self._chance(provider, fault)
        if isinstance(chance, float):
            struck = chance > 0 and self._roll(provider, fault, task_number) < chance
        else:
            left = self._left.setdefault((scope, fault), chance)
            struck = left > 0
            self._left[scope, fault] = left - struck
        if struck:
            self.struck[provider, fault] = self.struck.get((provider, fault), 0) + 1
        return struck

    def first(self, provider: str, faults: tuple[str, ...], task_number: int = 0) -> str | None:
        """The first of *faults* that strikes; those after it are not rolled for."""
        return next((fault for fault in faults if self.strikes(provider, fault, task_number)), None)

    def seconds(self, provider: str, setting: str) -> float:
        return float(self._chance(provider, setting)[1])

    def _chance(self, provider: str, fault: str) -> tuple[str, int | float]:
        own = self.faults.per_provider.get(provider)
        if own is not None and fault in own.model_fields_set:
            return provider, getattr(own, fault)
        return "", getattr(self.faults, fault)

    def _roll(self, provider: str, fault: str, task_number: int) -> float:
        self._rolls[provider, fault, task_number] += 1
        name = f"{self._seed}/{provider}/{fault}/{task_number}/{self._rolls[provider, fault, task_number]}"
        return random.Random(name).random()
