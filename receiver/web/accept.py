"""The `Accept` headers: the media types that a client prefers."""

from __future__ import annotations

from starlette.requests import Request


def accepted(request: Request) -> dict[str, float]:
    """Return the media types that *request* names in `Accept`, and how much each is wanted: 0, not at all, to 1."""
    entries = ",".join(request.headers.getlist("accept")).lower().split(",")
    return dict(_quality(entry) for entry in entries)


def _quality(entry: str) -> tuple[str, float]:
    media_type, *parameters = (part.strip() for part in entry.split(";"))
    given = next((part[2:] for part in parameters if part.startswith("q=")), "1")
    try:
        return media_type, float(given)
    except ValueError:
        return media_type, 0.0
