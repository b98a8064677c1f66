"""
Webhooks in Flask, called in a view:

    @app.post("/hooks")
    def hook():
        job = event("whsec_…").job
"""

from __future__ import annotations

from collections.abc import Sequence

from flask import abort, request

from submitter.webhooks import CallbackRefused, Event, unwrap


def event(secret: str | Sequence[str]) -> Event:
    """Return the verified event of the current request; ends the request with 401 if it can't be verified."""
    try:
        return unwrap(list(request.headers.items()), request.get_data(), secret)
    except CallbackRefused as exc:
        abort(401, str(exc))
