"""
Shared rate limits of providers, over all processes: token buckets in the table `pace`.

A bucket is stored as the time at which it will be full: taking tokens moves it on, and the passage of time needs no
write. A claim of jobs locks the provider's buckets first, so that of two processes the second sees what the first took;
the tokens are taken in the transaction of the claim. Tokens taken by a process that dies are lost, which errs on the
safe side.

Calls in flight are counted by the leases of the other processes: each knows its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from receiver.store.codecs import us
from receiver.store.statements import FOR_UPDATE, Fetch, Run, RunMany, Work
from submitter.provider_settings import Rate


@dataclass(frozen=True, slots=True)
class Allowance:
    """
    The shared limits of one kind of call to a provider, over all processes.

    *name* is their key; all of *rates* apply. *places* are the slots of the provider's concurrency that this process
    does not use itself; None: no limit. *unused* tokens were taken for calls that were not made, and are returned.
    """

    name: str
    rates: tuple[Rate, ...] = ()
    places: int | None = None
    unused: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """
    Permission to claim up to *limit* jobs now.

    *fills_in*: the seconds until each bucket is full; *crowded*: whether other processes hold all places.
    """

    limit: int
    fills_in: tuple[float, ...] = ()
    crowded: bool = False


def granted(
    allowance: Allowance | None, provider: str, limit: int, now: datetime, *, owner: str, lease: timedelta
) -> Work[Grant]:
    """Lock the buckets of *allowance* until the transaction ends. Call `spend` next, with the number claimed."""
    if allowance is None or (not allowance.rates and allowance.places is None):
        return Grant(limit)
    full_at = yield from _full_at(allowance, us(now))
    tokens = [_held(rate, at, us(now)) for rate, at in zip(allowance.rates, full_at, strict=True)]
    crowded = False
    if allowance.places is not None:
        soon = us(now + lease)
        held = (us(now), owner)
        ((sending,),) = yield Fetch(_SENDING, (provider, *held))
        ((queued,),) = yield Fetch(_PREPARING, (provider, us(now), soon, *held))
        free = max(allowance.places - sending - queued, 0)
        crowded = free == 0
        limit = min(limit, free)
    return Grant(max(min(limit, *tokens), 0) if tokens else limit, _fills_in(full_at, us(now)), crowded)


def spend(allowance: Allowance | None, grant: Grant, count: int, now: datetime) -> Work[tuple[float, ...]]:
    """Take *count* of the granted tokens. Returns the seconds until each bucket is full."""
    if allowance is None or not allowance.rates:
        return grant.fills_in
    if not count and not allowance.unused:
        return grant.fills_in
    filled = [
        us(now) + math.ceil(seconds * 1_000_000 + count * _microseconds(rate))
        for rate, seconds in zip(allowance.rates, grant.fills_in, strict=True)
    ]
    rows = [(at, allowance.name, str(rate)) for rate, at in zip(allowance.rates, filled, strict=True)]
    yield RunMany(_SPEND, rows)
    return _fills_in(filled, us(now))


def _full_at(allowance: Allowance, now: int) -> Work[list[int]]:
    """Return when each bucket is full, in the order of the rates; lock their rows, or create them."""
    names = [str(rate) for rate in allowance.rates] or [_NO_RATE]
    rows = yield Fetch(_BUCKETS, (allowance.name, names), FOR_UPDATE)
    if len(rows) < len(set(names)):
        for name in names:
            yield Run(_NEW, (allowance.name, name, now))
        rows = yield Fetch(_BUCKETS, (allowance.name, names), FOR_UPDATE)
    found = dict(rows)
    for rate in allowance.rates:
        empty = now + round(rate.seconds * 1_000_000)
        if found[str(rate)] > empty:  # the clock was set back: a bucket is never emptier than empty
            found[str(rate)] = empty
            yield Run(_SPEND, (empty, allowance.name, str(rate)))
    return [
        max(found[str(rate)] - round(allowance.unused * _microseconds(rate)), now)  # and at most full
        for rate in allowance.rates
    ]


def _held(rate: Rate, full_at: int, now: int) -> int:
    """Count the whole tokens; a token that lacks less than the rounding of times counts as whole."""
    return int(rate.count - (full_at - now - 1) / _microseconds(rate)) if full_at > now else rate.count


def _microseconds(rate: Rate) -> float:
    """Return how long a token takes to refill."""
    return rate.seconds * 1_000_000 / rate.count


def _fills_in(full_at: Sequence[int], now: int) -> tuple[float, ...]:
    return tuple((at - now) / 1_000_000 for at in full_at)


_NO_RATE = "-"
_BUCKETS = "SELECT rate, full_at FROM pace WHERE name = ? AND rate IN (??) ORDER BY rate"
_NEW = "INSERT INTO pace (name, rate, full_at) VALUES (?, ?, ?) ON CONFLICT (name, rate) DO NOTHING"
_SPEND = "UPDATE pace SET full_at = ? WHERE name = ? AND rate = ?"
# A call that was answered is no longer in flight, though the answer waits to be read.
_SENDING = (
    "SELECT count(*) FROM jobs WHERE state = 'sending' AND provider = ? AND lease_until > ? AND lease_owner <> ?"
    " AND NOT EXISTS (SELECT 1 FROM evidence WHERE job_id = jobs.id AND source = 'response' AND read_at IS NULL)"
)
# A claim moves the due time to the lease's end: held jobs are found within a few seconds of the queue.
_PREPARING = (
    "SELECT count(*) FROM jobs WHERE state = 'queued' AND provider = ? AND retry_at > ? AND retry_at <= ?"
    " AND lease_until > ? AND lease_owner <> ?"
)
