"""
Identifiers: a prefix and 26 characters of Crockford's base 32 that sort by time (48 bits of milliseconds, 80 random).
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from datetime import UTC, datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_LAST_MOMENT = 253_402_300_799_000
_lock = threading.Lock()
_last = (0, 0)


def new_id(prefix: str) -> str:
    """A fresh id such as `job_01k…`. Within one process ids are strictly increasing, also inside a millisecond."""
    global _last
    now = time.time_ns() // 1_000_000
    with _lock:
        moment, tail = _last
        if now > moment:
            moment, tail = now, secrets.randbits(79)
        else:
            tail += 1 + random.getrandbits(32)
        _last = (moment, tail)
    return _text(prefix, (moment << 80) | (tail & ((1 << 80) - 1)))


def is_id(prefix: str, text: str) -> bool:
    """Return whether *text* has the form of an id with *prefix*."""
    head, _, tail = text.partition("_")
    return head == prefix and len(tail) == 26 and set(tail) <= set(_ALPHABET)


def lowest_id(prefix: str, moment: datetime) -> str:
    """Return a lower bound of every id that was made at or after *moment*."""
    return _text(prefix, max(int(moment.timestamp() * 1000), 0) << 80)


def made_at(identifier: str) -> datetime:
    """Return when an id was made, to the millisecond; for anything that `is_id` accepts."""
    number = 0
    for letter in identifier.rpartition("_")[2]:
        number = number << 5 | _ALPHABET.index(letter)
    return datetime.fromtimestamp(min(number >> 80, _LAST_MOMENT) / 1000, UTC)


def _text(prefix: str, number: int) -> str:
    return f"{prefix}_" + "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])
