"""
Webhooks in Django, as a decorator of a view:

    @receives("whsec_…")
    def hook(request, event):
        return HttpResponse(status=204)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any

from django.http import HttpResponse, HttpResponseNotAllowed
from django.views.decorators.csrf import csrf_exempt

from submitter.signatures import parse_secrets
from submitter.webhooks import CallbackRefused, Event, unwrap

View = Callable[..., Any]


def receives(secret: str | Sequence[str]) -> Callable[[View], View]:
    """
    Have a view (plain or async) take `(request, event)`, exempt from CSRF checks, for verified POST requests.

    Raises `ValueError` for a malformed *secret*.
    """
    parse_secrets(secret)

    def decorate(view: View) -> View:
        def verified(request: Any) -> Event | Any:
            if request.method != "POST":
                return HttpResponseNotAllowed(["POST"])
            try:
                return unwrap(list(request.headers.items()), request.body, secret)
            except CallbackRefused as exc:
                return HttpResponse(str(exc), status=401, content_type="text/plain")

        def handle(request: Any, *args: Any, **kwargs: Any) -> Any:
            event = verified(request)
            return event if isinstance(event, HttpResponse) else view(request, event, *args, **kwargs)

        async def handle_async(request: Any, *args: Any, **kwargs: Any) -> Any:
            event = verified(request)
            return event if isinstance(event, HttpResponse) else await view(request, event, *args, **kwargs)

        handler: View = csrf_exempt(functools.wraps(view)(handle_async if iscoroutinefunction(view) else handle))
        return handler

    return decorate
