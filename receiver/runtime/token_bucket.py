"""Token buckets: a number of calls per number of seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from submitter.provider_settings import Rate


class Bucket:
    """Applies all of *rates*: each is a bucket of `count` tokens that fills in `seconds`. No rates: no limit."""

    def __init__(self, rates: Sequence[Rate], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = tuple(rates)
        self._clock = clock
        self._held = [float(rate.count) for rate in rates]
        self._filled_at = clock()

    @property
    def limited(self) -> bool:
        return bool(self._rates)

    def available(self) -> int | None:
        """Return the number of tokens that can be taken now; None: no limit."""
        self._fill()
        return min((int(held + 1e-9) for held in self._held), default=None)

    def take(self, count: int = 1) -> None:
        """Take *count* tokens, below zero if need be."""
        self._fill()
        self._held = [held - count for held in self._held]

    def give_back(self, count: int = 1) -> None:
        """Return tokens that were taken for calls that were not made."""
        self._held = [min(held + count, rate.count) for held, rate in zip(self._held, self._rates, strict=True)]

    def fill(self, seconds: Sequence[float]) -> None:
        """Set the *seconds* until the bucket of each rate is full."""
        self._filled_at = self._clock()
        self._held = [rate.count * (1 - left / rate.seconds) for rate, left in zip(self._rates, seconds, strict=True)]

    def seconds_to_next(self) -> float:
        """Return the seconds until a token is available."""
        return self.seconds_for(1)

    def seconds_for(self, count: int) -> float:
        """Return the seconds until *count* calls have been made, if no others are."""
        self._fill()
        return max(
            (
                max(count - held, 0) * rate.seconds / rate.count
                for held, rate in zip(self._held, self._rates, strict=True)
            ),
            default=0.0,
        )

    def _fill(self) -> None:
        now = self._clock()
        passed, self._filled_at = now - self._filled_at, now
        self._held = [
            min(held + passed * rate.count / rate.seconds, float(rate.count))
            for held, rate in zip(self._held, self._rates, strict=True)
        ]
