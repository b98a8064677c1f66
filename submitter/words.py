"""Values and a job's fields in words, as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_WAITS = {
    "rate_limit": "waits for its turn",
    "provider_paused": "the provider is paused",
    "retry": "waits to be sent again",
    "callback": "waits for a callback",
    "poll": "waits for the next poll",
}


def waiting_text(reason: str) -> str:
    """Return *reason*, of `waiting_for`, in words; a receiver may know more of them than this version."""
    return _WAITS.get(reason, reason.replace("_", " "))


def moment_text(moment: str) -> str:
    """Format a time of the API, to the second: `2026-01-31 12:00:00Z`."""
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def size_text(count: int) -> str:
    """Format bytes: `812 B`, `48.3 kB`, `4.2 MB`."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def job_fields(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of *job*, as the API has it, with objects as words: its input, images, error, cost and wait."""
    worded = {"input": _input, "error": _error, "cost": _cost, "waiting_for": _wait}
    shown = {name: worded[name](value) if name in worded and value else value for name, value in job.items()}
    return {**shown, "images": [_image(image) for image in job.get("images") or ()]}


def _input(given: Mapping[str, Any]) -> str:
    return ", ".join(part for part in (given.get("file_name"), *_measures(given)) if part)


def _error(error: Mapping[str, Any]) -> str:
    permanent = ", permanent" if error.get("permanent") else ""
    return f"{error['message']} ({error['code']}{permanent})"


def _cost(cost: Mapping[str, Any]) -> str:
    return f"{cost['amount']} {cost['unit']}"


def _wait(waiting: Mapping[str, Any]) -> str:
    until = waiting.get("until")
    return waiting_text(waiting["reason"]) + (f", until {moment_text(until)}" if until else "")


def _image(image: Mapping[str, Any]) -> str:
    state, url = image["state"], image.get("url") if image.get("kept") else image.get("source_url")
    why = f": {image['lost_reason']}" if image.get("lost_reason") else ""
    parts = (f"{state}{why}", *_measures(image), image.get("content_type"), url)
    return ", ".join(part for part in parts if part)


def _measures(image: Mapping[str, Any]) -> list[str]:
    """Return the size in pixels and in bytes, as far as they are known."""
    width, height, count = image.get("width"), image.get("height"), image.get("bytes")
    return [*([f"{width}×{height}"] if width and height else ()), *([size_text(count)] if count is not None else ())]
