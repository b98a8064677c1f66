"""
The rate limits of a provider, as one process knows them.

Rates and concurrency apply over all processes, by `receiver.store.pace`: every claim takes its tokens there, and
returns how full the buckets are. What answers reveal (the window, "not now") each process learns by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from receiver.runtime.token_bucket import Bucket
from receiver.store.pace import Allowance
from submitter.provider_settings import Rate

_PATIENCE_SECONDS = 5.0
_IDLE_SECONDS = 10.0
_FAILURES = 3
_LONGEST_HOLD_SECONDS = 600.0
_LONGEST_BACKOFF_SECONDS = 30.0


class Pace:
    """
    The number of calls that may be sent to one provider now: by its rates, *concurrency*, and its last answers.

    The window opens slowly: a single call until the first answer, then twice as many with every answer. So a bad key or
    an empty account costs one call and not a whole queue. A call that takes longer than a few seconds is no such
    refusal and stops holding others back. "Not now" halves the window; three times in a row, or *for all*, it stops
    calls to the provider for as long as the provider asks.
    """

    def __init__(self, rates: Sequence[Rate], *, concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.bucket = Bucket(rates, clock=clock)
        self.concurrency = concurrency
        self._rates = tuple(rates)
        self._unused = 0
        self._clock = clock
        self._left_at: dict[str, float] = {}
        self._window = 1
        self._proven_at: float | None = None
        self._held_until: float | None = None
        self._failures = 0
        self._call_seconds: float | None = None

    def allowed(self) -> int:
        """Return how many calls may be sent now."""
        now = self._clock()
        if self._held_until is not None and now < self._held_until:
            return 0
        if not self._left_at and (self._proven_at is None or now - self._proven_at > _IDLE_SECONDS):
            self._window = 1
        young = sum(now - left_at < _PATIENCE_SECONDS for left_at in self._left_at.values())
        free = min(self.concurrency - len(self._left_at), self._window - young)
        tokens = self.bucket.available()
        return max(free if tokens is None else min(free, tokens), 0)

    def seconds_to_next(self) -> float:
        """Return when to ask again, if `allowed` was 0 and no call ends before."""
        now = self._clock()
        waits = [self.bucket.seconds_to_next()]
        if self._held_until is not None:
            waits.append(self._held_until - now)
        if self._left_at and self._window <= len(self._left_at) < self.concurrency:
            waits.append(min(self._left_at.values()) + _PATIENCE_SECONDS - now)
        return max(*waits, 0.0)

    def allowance(self, name: str, *, places: int | None = None) -> Allowance:
        """Return the allowance of a claim for calls under the shared *name*; it returns the unused tokens."""
        unused, self._unused = self._unused, 0
        return Allowance(name, self._rates, places, unused)

    @property
    def places(self) -> int:
        """The slots of the provider's concurrency that this process does not use."""
        return max(self.concurrency - len(self._left_at), 0)

    def claimed(self, fills_in: Sequence[float]) -> None:
        """Record a claim's tokens: *fills_in* are the seconds until each bucket is full."""
        self.bucket.fill(fills_in)

    def leaving(self, call: str) -> None:
        """Record the start of a call, whose token was taken by its claim; `ended` takes the same name."""
        self._left_at[call] = self._clock()

    def ended(self, call: str, *, made: bool = True) -> None:
        """Record the end of a call; *made* is false if nothing was sent after all."""
        left_at = self._left_at.pop(call, None)
        if not made:
            self._unused += 1
            self.bucket.give_back()
        elif left_at is not None:
            took = self._clock() - left_at
            self._call_seconds = took if self._call_seconds is None else 0.8 * self._call_seconds + 0.2 * took

    def answered(self) -> None:
        """Record that the provider accepted a call with our key."""
        self._failures = 0
        self._proven_at = self._clock()
        self._window = min(self._window * 2, self.concurrency)

    def refused(self) -> None:
        """Record that the provider did not accept our key: from now on, one call at a time."""
        self._window = 1

    def not_now(self, retry_after_seconds: float | None, *, for_all: bool = False) -> None:
        """Record too many calls, a failure on the other side, or a failed connection."""
        self._failures += 1
        self._window = max(self._window // 2, 1)
        if self._failures >= _FAILURES or for_all:
            excess = max(self._failures - (1 if for_all else _FAILURES), 0)
            pause = retry_after_seconds
            if pause is None:
                pause = min(2.0**excess, _LONGEST_BACKOFF_SECONDS)
            self._held_until = max(self._held_until or 0.0, self._clock() + min(pause, _LONGEST_HOLD_SECONDS))
            self._window = 1

    def seconds_for(self, count: int, *, call_seconds: float | None = None) -> float | None:
        """
        Return the seconds until *count* calls have ended, by the rates and the length of calls; None if unknown.

        *call_seconds* is the length of a call as known from elsewhere, until this process has made calls.
        """
        if count == 0:
            return 0.0
        each = self._call_seconds if self._call_seconds is not None else call_seconds
        if each is None:
            return self.bucket.seconds_for(count) if self.bucket.limited else None
        return max(self.bucket.seconds_for(count), math.ceil(count / self.concurrency) * each)
