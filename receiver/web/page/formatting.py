"""Values as people read them: times, durations, sizes, states."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from submitter.file_names import stem_of
from submitter.image_files import SUFFIXES
from submitter.words import waiting_text

STATES: Mapping[str, tuple[str, str]] = {
    "queued": ("wait", "M8 4v4l2.5 1.5M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0Z"),
    "sending": ("busy", "M2.5 8h9m0 0L8 4.5m3.5 3.5L8 11.5"),
    "running": ("busy", "M8 2a6 6 0 1 0 6 6"),
    "succeeded": ("good", "M3 8.5 6.5 12 13 4.5"),
    "failed": ("bad", "m4 4 8 8m0-8-8 8"),
    "expired": ("bad", "M4 2.5h8M4 13.5h8M4.5 2.5c0 6 7 5 7 11m0-11c0 6-7 5-7 11"),
    "canceled": ("idle", "M3.5 8h9"),
    "unconfirmed": ("warn", "M5.5 6a2.5 2.5 0 1 1 3.3 2.4c-.5.2-.8.6-.8 1.1v.5M8 12.5v.1"),
    "pending": ("wait", "M8 4v4l2.5 1.5M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0Z"),
    "delivered": ("good", "M3 8.5 6.5 12 13 4.5"),
    "given_up": ("bad", "m4 4 8 8m0-8-8 8"),
    "dropped": ("idle", "M3.5 8h9"),
    "enabled": ("good", "M3 8.5 6.5 12 13 4.5"),
    "disabled": ("idle", "M3.5 8h9"),
    "failing": ("warn", "M8 3.5v5.5M8 12v.1"),
    "paused": ("warn", "M6 3.5v9m4-9v9"),
    "ready": ("good", "M3 8.5 6.5 12 13 4.5"),
    "no key": ("idle", "M3.5 8h9"),
}
"""The tone of each state, and the lines of its icon: a state is never shown by its colour alone."""


def badge(state: str) -> Markup:
    """Format a state as a word with an icon."""
    tone, lines = STATES.get(state, ("idle", "M3.5 8h9"))
    return Markup(
        '<span class="badge {}"><svg viewBox="0 0 16 16" aria-hidden="true"><path d="{}"/></svg>{}</span>'
    ).format(tone, lines, state.replace("_", " "))


def moment(value: str | datetime | None, style: str = "full") -> Markup:
    """
    Return a `time` element in UTC, which the JavaScript module turns into local time, except for days.

    *style*: `full`, `short` (today's without the day, in the browser), `time`, `hour`, `day`, or `date`: a day without
    its year.
    """
    if value is None:
        return Markup('<span class="none">–</span>')
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    at = at.astimezone(UTC)
    shown = _MOMENTS[style]
    machine = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" data-moment="{}" title="{}">{}</time>').format(
        machine, style, machine, at.strftime(shown)
    )


_MOMENTS = {
    "full": "%d %b %Y %H:%M:%S UTC",
    "short": "%d %b %H:%M UTC",
    "time": "%H:%M:%S UTC",
    "hour": "%H:%M UTC",
    "day": "%d %b %Y",
    "date": "%d %b",
}


def until(value: str | None, now: datetime) -> Markup:
    """Format a time as the duration until it, or since it."""
    if value is None:
        return Markup("")
    at = datetime.fromisoformat(value)
    seconds = (at - now).total_seconds()
    text = "now" if abs(seconds) < 1 else f"in {duration(seconds)}" if seconds >= 0 else f"{duration(-seconds)} ago"
    machine = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" data-moment="until" title="{}">{}</time>').format(machine, machine, text)


def duration(seconds: float | None) -> str:
    """Format a duration: `42 ms`, `0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return "–"
    if seconds < 0.0005:
        return "under 1 ms"
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60 and seconds == int(seconds):
        return f"{int(seconds)} s"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, small_size, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def between(start: str | None, end: str | None) -> str:
    """Format the duration between two times."""
    if start is None or end is None:
        return "–"
    return duration((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def size(count: int | None) -> str:
    """Format bytes: `812 B`, `1.4 MB`."""
    if count is None:
        return "–"
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def number(value: float | None) -> str:
    """Format a number with thin spaces between thousands."""
    if value is None:
        return "–"
    return (
        f"{value:,.0f}".replace(",", "\u202f") if float(value).is_integer() else f"{value:,.2f}".replace(",", "\u202f")
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}\u202f%"


def file_name(job: Mapping[str, Any]) -> str:
    """Return a name of a job for people: its file's, or else the end of its id."""
    given = (job.get("input") or {}).get("file_name")
    return str(given) if given else f"Job {job['id'][-8:]}"


def result_name(job: Mapping[str, Any], n: int) -> str:
    """Return the file name for result *n* of a job: its input's, with the ending of its own type."""
    stem = stem_of((job.get("input") or {}).get("file_name") or "") or str(job["id"])
    suffix = SUFFIXES.get(job["images"][n]["content_type"] or "", ".bin")
    return f"{stem}{suffix}" if len(job["images"]) == 1 else f"{stem}-{n + 1}{suffix}"


def pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def plural(count: int, word: str, several: str = "") -> str:
    return f"{number(count)} {word if count == 1 else several or word + 's'}"


def breakable(name: str) -> Markup:
    """Allow line breaks between the words of a name or an address."""
    return Markup("<wbr>").join(re.findall(r"[^._/?&=-]*[._/?&=-]?", name))


def sentence(words: str) -> str:
    """Return *words* with a capital, as the beginning of a sentence."""
    return words[:1].upper() + words[1:]


def host(url: str | None) -> str:
    """Return an address without its scheme."""
    return (url or "").partition("://")[2] or url or "–"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "badge": badge,
    "moment": moment,
    "until": until,
    "duration": duration,
    "between": between,
    "size": size,
    "number": number,
    "percent": percent,
    "file_name": file_name,
    "result_name": result_name,
    "pretty": pretty,
    "plural": plural,
    "sentence": sentence,
    "host": host,
    "waiting": waiting_text,
    "breakable": breakable,
}
GLOBALS: Mapping[str, Any] = {"escape": escape}
