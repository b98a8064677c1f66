"""A provider as one process uses it."""

from __future__ import annotations

from dataclasses import dataclass

from receiver.domain.polling import Timing
from receiver.upstream.rate_limits import Pace
from submitter.provider import Provider


@dataclass(slots=True)
class ProviderSlot:
    """
    A provider with its rate limits and the timing of its polls.

    `configured` says whether it has a key: without one its callbacks are still read, and nothing is sent.
    """

    provider: Provider
    pace: Pace
    poll_pace: Pace
    configured: bool
    usual: Timing
    early: Timing
    """The timing while its callbacks get lost."""
    degraded: bool = False

    @property
    def timing(self) -> Timing:
        """The timing of its polls now."""
        return self.early if self.degraded else self.usual
