"""Times as people type them: RFC 3339, a date, or an age (`30m`, `1h`, `2d`)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from submitter.printing import CommandFailed

_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(s|m|min|h|d|w)")
HOW = "write it as 1h, 30m, 2d, 2026-01-31 or 2026-01-31T12:00:00Z"


def parse_moment(text: str, now: datetime) -> datetime:
    """Return an aware time in UTC; without a zone it is taken as UTC. Raises `ValueError` that says how to write it."""
    ago = _AGO.fullmatch(text.strip().lower())
    try:
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        moment = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise ValueError(HOW) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def moment_option(option: str, text: str | None, now: datetime) -> datetime | None:
    """Return the time given with *option*; `CommandFailed` says how to write it."""
    try:
        return None if text is None else parse_moment(text, now)
    except ValueError as exc:
        raise CommandFailed(f"{option} {text!r}: {exc}", status=2) from exc
