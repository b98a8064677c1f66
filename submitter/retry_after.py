"""The `Retry-After` header (RFC 9110, 10.2.3)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")  # whole by the standard; some servers send a fraction


def retry_after_seconds(headers: httpx.Headers, *, longest: float, now: datetime | None = None) -> float | None:
    """
    The pause that *headers* ask for, between 0 and *longest* seconds; None if they ask for none or can't be read.

    A date counts from the answer's own `Date`, so that neither clock need be right; without one, from *now*.
    """
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text[:12]), longest)
    until = _date(text)
    if until is None:
        return None
    since = _date(headers.get("date", "")) or now or datetime.now(UTC)
    return min(max((until - since).total_seconds(), 0.0), longest)


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return date.replace(tzinfo=date.tzinfo or UTC)
