"""
`/openapi.json`: the public surface as OpenAPI 3.1, events under `webhooks`.

The operations of `/v1` are in openapi_paths.py, the shapes in openapi_schemas.py. A test compares it with the routes
that are really served and with real answers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.entity import Schema
from receiver.domain.events import EVENT_TYPES
from receiver.web.openapi_operations import (
    JSON,
    MEANINGS,
    PROBLEM,
    TEXT,
    bodiless,
    changes_refused,
    operation,
    path_parameter,
)
from receiver.web.openapi_paths import (
    deliveries_paths,
    endpoints_paths,
    events_paths,
    images_paths,
    jobs_paths,
    providers_paths,
)
from receiver.web.openapi_schemas import event_schema_name, ref, schemas
from submitter.provider import Provider


def routes(providers: Mapping[str, type[Provider]]) -> list[Route]:
    """Return the route that serves the description, without a token."""
    text = _written(tuple(providers.values()))

    async def show(request: Request) -> Response:
        return Response(text, media_type=JSON)

    return [Route("/openapi.json", show, methods=["GET"])]


@functools.cache
def _written(providers: tuple[type[Provider], ...]) -> bytes:
    description = describe({provider.name: provider for provider in providers})
    return json.dumps(description, ensure_ascii=False, separators=(",", ":")).encode()


def describe(providers: Mapping[str, type[Provider]]) -> dict[str, Any]:
    """Return the whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "upscale-receiver",
            "version": _version(),
            "summary": "Submit AI upscaling jobs; receive, verify, keep and pass on their results.",
        },
        "security": [{"bearer": []}],
        "tags": [{"name": name} for name in ("jobs", "providers", "events", "endpoints", "deliveries", "service")],
        "paths": {
            **changes_refused(
                {
                    **jobs_paths(providers),
                    **images_paths(),
                    **providers_paths(list(providers)),
                    **events_paths(tuple(providers)),
                    **endpoints_paths(),
                    **deliveries_paths(),
                },
            ),
            **_service(),
        },
        "webhooks": {name: {"post": _webhook(name)} for name in EVENT_TYPES},
        "components": {
            "schemas": schemas(providers),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _service() -> dict[str, Any]:
    token = path_parameter("token")
    health = {"type": "object", "properties": {"status": TEXT}, "required": ["status"]}

    def plain(summary: str, statuses: Sequence[int], *, parameters: Sequence[Schema] = ()) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for status in statuses:
            content = {"text/plain": {}} if status < 400 else {PROBLEM: {"schema": ref("Problem")}}
            answers[str(status)] = {"description": MEANINGS[status], "content": content}
        return {"tags": ["service"], "summary": summary, "security": [], "parameters": parameters, "responses": answers}

    def public(summary: str, answers: Mapping[int, Schema | str | None], *parameters: Schema) -> dict[str, Any]:
        made = operation("service", summary, answers, parameters)
        del made["responses"]["401"]
        return {**made, "security": []}

    callback = [path_parameter("provider"), token]
    received = plain("Receive a provider's callback.", (200, 400, 401, 404, 408, 413, 429, 503), parameters=callback)
    received["requestBody"] = {"content": {"*/*": {"schema": {}}}}
    ready = public("Check whether the receiver can do its work.", {200: health})
    ready["responses"]["503"] = {"description": "Not ready; `checks` says why.", "content": {JSON: {"schema": health}}}
    return {
        "/callbacks/{provider}/{token}": {
            "get": plain("Check whether the callback URL is valid.", (200, 404), parameters=callback),
            "head": bodiless(plain("Check whether the callback URL is valid.", (200, 404), parameters=callback)),
            "post": received,
        },
        "/inputs/{token}": {
            "get": public("Get a job's input; for its provider.", {200: "image/*", 404: None}, token),
            "head": bodiless(public("Check whether the input exists, and its type.", {200: "", 404: None}, token)),
        },
        "/healthz": {"get": public("Check whether the process is alive.", {200: health})},
        "/readyz": {"get": ready},
        "/metrics": {"get": public("Get metrics in Prometheus' text format.", {200: "text/plain"})},
        "/openapi.json": {"get": public("Get this description.", {200: {"type": "object"}})},
    }


def _webhook(name: str) -> dict[str, Any]:
    headers = [
        {"name": header, "in": "header", "required": True, "schema": TEXT, "description": meaning}
        for header, meaning in (
            ("webhook-id", "The event's id: the same on every try and replay."),
            ("webhook-timestamp", "When this try was signed, in Unix seconds."),
            ("webhook-signature", "`v1,` and a signature for each secret in force, separated by spaces."),
        )
    ]
    return {
        "summary": name,
        "security": [],
        "parameters": headers,
        "requestBody": {"required": True, "content": {JSON: {"schema": ref(event_schema_name(name))}}},
        "responses": {
            "2XX": {"description": "Delivered."},
            "410": {"description": "Never again: the endpoint is disabled."},
            "default": {"description": "Tried again later, after `Retry-After` if there is one."},
        },
    }


def _version() -> str:
    try:
        return version("upscale-receiver")
    except PackageNotFoundError:
        return "0"
