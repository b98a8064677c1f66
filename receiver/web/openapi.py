"""
`/openapi.json`: the public surface as OpenAPI 3.1, events under `webhooks`.

One table of operations; the shapes are in openapi_schemas.py. A test holds it against the routes that are really
served and against real answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.deliveries import DeliveryState
from receiver.domain.entity import Schema
from receiver.domain.events import EVENT_TYPES
from receiver.web.openapi_schemas import event_schema_name, page_of, ref, schemas
from submitter.provider import Provider
from submitter.vocabulary import State

_TEXT = {"type": "string"}
_MOMENT = {"type": "string", "format": "date-time"}
_JSON, _PROBLEM, _STREAM = "application/json", "application/problem+json", "text/event-stream"
_MEANINGS = {
    200: "As asked.",
    201: "Made.",
    202: "Accepted.",
    204: "Done.",
    400: "The body can't be read.",
    401: "No bearer token, or a wrong one; for a callback, no good signature.",
    403: "The token may read and change nothing.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "Not as things are.",
    413: "Too large.",
    415: "A media type that is not taken.",
    422: "It can't be done as asked; `field` and `remedy` say what to change.",
    503: "Our internal errors: come again after `Retry-After`.",
}


def routes(providers: Mapping[str, type[Provider]]) -> list[Route]:
    """Where the description is served; without a token."""
    text = json.dumps(describe(providers), ensure_ascii=False, separators=(",", ":")).encode()

    async def show(request: Request) -> Response:
        return Response(text, media_type=_JSON)

    return [Route("/openapi.json", show, methods=["GET"])]


def describe(providers: Mapping[str, type[Provider]]) -> dict[str, Any]:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "upscale-receiver",
            "version": _version(),
            "summary": "Submit AI upscaling jobs; receive, verify, keep and pass on what comes back.",
        },
        "security": [{"bearer": []}],
        "tags": [{"name": name} for name in ("jobs", "providers", "events", "endpoints", "deliveries", "service")],
        "paths": {
            **_changes_refused(
                {
                    **_jobs(providers),
                    **_images(),
                    **_providers(list(providers)),
                    **_events(tuple(providers)),
                    **_endpoints(),
                    **_deliveries(),
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


_NEW_JOB = {
    "required": True,
    "content": {
        _JSON: {"schema": ref("NewJob")},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "job": ref("NewJobPart"),
                    "image": {"type": "string", "contentMediaType": "application/octet-stream"},
                },
                "required": ["job", "image"],
            },
            "encoding": {"job": {"contentType": _JSON}, "image": {"contentType": "image/*"}},
        },
    },
}


def _jobs(providers: Mapping[str, type[Provider]]) -> dict[str, Any]:
    names, job = list(providers), ref("Job")
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Posts with the same key and content are one job; kept 24 h.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    }
    one = _path("id")
    abandon, twice = _optional_flag("abandon"), _optional_flag("may_pay_twice")
    listed = [
        _many("state", State),
        _many("provider", names),
        _one("since", _MOMENT, "Made at this moment or later."),
        _one("until", _MOMENT, "Made before this moment."),
        _one("q", {**_TEXT, "maxLength": 200}, "Text in ids, the file's name or metadata; a page may then be short."),
        *_paging("job"),
    ]
    return {
        "/v1/jobs": {
            "get": _operation("jobs", "List jobs, newest first.", {200: page_of("Job"), 422: None}, listed),
            "post": _operation(
                "jobs",
                "Submit a job.",
                {202: job, 200: job, 400: None, 409: None, 413: None, 415: None, 422: None},
                [key],
                body=_NEW_JOB,
            ),
        },
        "/v1/lost": {
            "get": _operation(
                "jobs",
                "What was paid for and never reached us, newest first.",
                {200: page_of("LostJob"), 422: None},
                _paging("job"),
            )
        },
        "/v1/jobs/{id}": {"get": _operation("jobs", "One job.", {200: job, 404: None}, [one])},
        "/v1/jobs/{id}/evidence": {
            "get": _operation(
                "jobs",
                "What came in about it, as it came.",
                {200: page_of("Evidence"), 404: None, 422: None},
                [one, *_paging()],
            )
        },
        "/v1/jobs/{id}/cancel": {
            "post": _operation(
                "jobs",
                "End a queued job; with `abandon` stop waiting for one that was sent.",
                {200: job, 400: None, 404: None, 409: None, 413: None, 422: None},
                [one],
                body=abandon,
            )
        },
        "/v1/jobs/{id}/resubmit": {
            "post": _operation(
                "jobs",
                "A new job with the same input and options.",
                {202: job, 200: job, 400: None, 404: None, 409: None, 413: None, 422: None},
                [one, key],
                body=twice,
            )
        },
        "/v1/jobs/{id}/poll": {
            "post": _operation("jobs", "Poll its provider now.", {202: job, 404: None, 409: None}, [one])
        },
        "/v1/stats": {
            "get": _operation(
                "jobs",
                "Sums of each hour, newest first.",
                {200: page_of("HourOfStatistics"), 422: None},
                _paging(),
            )
        },
    }


def _images() -> dict[str, Any]:
    one, nth = _path("id"), _path("n", {"type": "integer", "minimum": 0})
    return {
        "/v1/jobs/{id}/images/{n}": {
            "get": _operation("jobs", "Our copy of a result.", {200: "image/*", 404: None}, [one, nth])
        },
        "/v1/jobs/{id}/images/{n}/thumbnail": {
            "get": _operation("jobs", "A small WEBP of a result.", {200: "image/webp", 404: None}, [one, nth])
        },
        "/v1/jobs/{id}/input": {
            "get": _operation("jobs", "Its input, as long as it is kept.", {200: "image/*", 404: None}, [one])
        },
        "/v1/jobs/{id}/input/thumbnail": {
            "get": _operation("jobs", "A small WEBP of its input.", {200: "image/webp", 404: None}, [one])
        },
    }


def _providers(names: Sequence[str]) -> dict[str, Any]:
    return {
        "/v1/providers/{name}/pause": {
            "post": _operation(
                "providers",
                "Send nothing to a provider until it is resumed; no job probes it.",
                {200: {"type": "object"}, 400: None, 404: None, 413: None, 422: None},
                [_path("name", {**_TEXT, "enum": names})],
                body=_body("NewPause", required=False),
            )
        },
        "/v1/providers": {
            "get": _operation("providers", "The providers, their options and queues.", {200: page_of("Provider")})
        },
        "/v1/providers/{name}/resume": {
            "post": _operation(
                "providers",
                "Send to a paused provider again.",
                {200: {"type": "object"}, 404: None},
                [_path("name", {**_TEXT, "enum": names})],
            )
        },
    }


def _events(providers: Sequence[str]) -> dict[str, Any]:
    cursor = {"type": "string", "pattern": "^[0-9]{1,18}$"}
    resume = "The last position that was seen; for streams."
    operation = _operation(
        "events",
        "Events in the order of their positions: a page, or with `Accept: text/event-stream` as they happen.",
        {200: page_of("Event"), 409: None, 422: None},
        [
            _many("type", EVENT_TYPES),
            _many("provider", providers),
            _one("job", _TEXT),
            _one("after", cursor, "Above this position; a stream without it begins with what happens from now on."),
            _one("last_event_id", cursor, resume),
            {"name": "Last-Event-ID", "in": "header", "description": resume, "schema": cursor},
            *_paging(most=500),
        ],
    )
    operation["responses"]["200"]["content"][_STREAM] = {
        "schema": {**_TEXT, "description": "`id`: position, `event`: type, `webhook-id`: event id, `data`: the body."}
    }
    return {"/v1/events": {"get": operation}}


def _endpoints() -> dict[str, Any]:
    one, with_secret = _path("id"), ref("EndpointWithSecret")

    def changing(summary: str, model: str) -> dict[str, Any]:
        answers = {200: ref("Endpoint"), 400: None, 404: None, 413: None, 422: None}
        return _operation("endpoints", summary, answers, [one], body=_body(model))

    return {
        "/v1/endpoints": {
            "get": _operation(
                "endpoints", "List endpoints, oldest first.", {200: page_of("Endpoint"), 422: None}, _paging("ep")
            ),
            "post": _operation(
                "endpoints",
                "Make an endpoint; the secret is in this answer only.",
                {201: with_secret, 400: None, 413: None, 422: None},
                body=_body("NewEndpoint"),
            ),
        },
        "/v1/endpoints/{id}": {
            "get": _operation("endpoints", "One endpoint.", {200: ref("Endpoint"), 404: None}, [one]),
            "patch": changing("Change what is named.", "EndpointChange"),
            "put": changing("Set everything; what is not named goes back to its default.", "NewEndpoint"),
            "delete": _operation("endpoints", "Remove it.", {204: "", 404: None}, [one]),
        },
        "/v1/endpoints/{id}/test": {
            "post": _operation(
                "endpoints",
                "Send an example event, by the way of real ones.",
                {202: ref("DeliveryWithAttempts"), 400: None, 404: None, 413: None, 422: None},
                [one],
                body=_body("Trial", required=False),
            )
        },
        "/v1/endpoints/{id}/rotate-secret": {
            "post": _operation(
                "endpoints",
                "A new secret; the old one signs beside it for a while.",
                {200: with_secret, 400: None, 404: None, 413: None, 422: None},
                [one],
                body=_body("Rotation", required=False),
            )
        },
    }


def _deliveries() -> dict[str, Any]:
    shown, one = ref("DeliveryWithAttempts"), _path("id")
    filters = [
        _many("state", DeliveryState),
        _one("undelivered", {**_TEXT, "enum": ["true", "false"]}, "Only what was tried or has ended undelivered."),
        _one("fault", {**_TEXT, "enum": ["ours", "theirs"]}),
        _one("endpoint", _TEXT),
        _one("job", _TEXT),
        _one("event", _TEXT),
        _many("type", EVENT_TYPES),
    ]
    return {
        "/v1/deliveries": {
            "get": _operation(
                "deliveries",
                "List deliveries, newest first.",
                {200: page_of("Delivery"), 422: None},
                [*filters, *_paging("dlv")],
            )
        },
        "/v1/deliveries/replay": {
            "post": _operation(
                "deliveries",
                "Deliver again: all failures, an endpoint's, or everything since a moment.",
                {202: ref("Replayed"), 200: ref("Replayed"), 400: None, 409: None, 413: None, 422: None},
                body=_body("BulkReplay", required=False),
            )
        },
        "/v1/deliveries/{id}": {
            "get": _operation("deliveries", "A delivery and its attempts.", {200: shown, 404: None}, [one])
        },
        "/v1/deliveries/{id}/replay": {
            "post": _operation(
                "deliveries",
                "Deliver it again, with the same event id.",
                {202: shown, 404: None, 409: None},
                [one],
            )
        },
    }


def _service() -> dict[str, Any]:
    token, status = _path("token"), {"type": "object", "properties": {"status": _TEXT}, "required": ["status"]}

    def plain(summary: str, statuses: Sequence[int], *, parameters: Sequence[Schema] = ()) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for one in statuses:
            content = {"text/plain": {}} if one < 400 else {_PROBLEM: {"schema": ref("Problem")}}
            answers[str(one)] = {"description": _MEANINGS[one], "content": content}
        return {"tags": ["service"], "summary": summary, "security": [], "parameters": parameters, "responses": answers}

    def public(summary: str, answers: Mapping[int, Schema | str | None], *parameters: Schema) -> dict[str, Any]:
        made = _operation("service", summary, answers, parameters)
        del made["responses"]["401"]
        return {**made, "security": []}

    callback = [_path("provider"), token]
    received = plain("A provider's callback.", (200, 401, 404, 408, 413, 503), parameters=callback)
    received["requestBody"] = {"content": {"*/*": {"schema": {}}}}
    ready = public("Whether it is able to work.", {200: status})
    ready["responses"]["503"] = {"description": "Not able to work.", "content": {_JSON: {"schema": status}}}
    return {
        "/callbacks/{provider}/{token}": {
            "get": plain("Whether the callback URL is good.", (200, 404), parameters=callback),
            "head": _bodiless(plain("Whether the callback URL is good.", (200, 404), parameters=callback)),
            "post": received,
        },
        "/inputs/{token}": {
            "get": public("A job's input, for its provider.", {200: "image/*", 404: None}, token),
            "head": _bodiless(public("Whether the input is there, and its type.", {200: "", 404: None}, token)),
        },
        "/healthz": {"get": public("Whether it is alive.", {200: status})},
        "/readyz": {"get": ready},
        "/metrics": {"get": public("For Prometheus.", {200: "text/plain"})},
        "/openapi.json": {"get": public("This.", {200: {"type": "object"}})},
    }


def _webhook(name: str) -> dict[str, Any]:
    headers = [
        {"name": header, "in": "header", "required": True, "schema": _TEXT, "description": meaning}
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
        "requestBody": {"required": True, "content": {_JSON: {"schema": ref(event_schema_name(name))}}},
        "responses": {
            "2XX": {"description": "Delivered."},
            "410": {"description": "Never again: the endpoint is disabled."},
            "default": {"description": "Tried again later, after `Retry-After` if there is one."},
        },
    }


# --- Parts ----------------------------------------------------------------------------------------------------------


def _operation(
    tag: str,
    summary: str,
    answers: Mapping[int, Schema | str | None],
    parameters: Sequence[Schema] = (),
    *,
    body: Schema | None = None,
) -> dict[str, Any]:
    """One operation. An answer is a schema, a media type, "" for no body, or None for a problem."""
    found: dict[str, Any] = {"tags": [tag], "summary": summary, "responses": {}}
    if parameters:
        found["parameters"] = list(parameters)
    if body is not None:
        found["requestBody"] = body
    for status, answer in {**answers, 401: None, 503: None}.items():
        response: dict[str, Any] = {"description": _MEANINGS[status]}
        if answer is None:
            response["content"] = {_PROBLEM: {"schema": ref("Problem")}}
        elif isinstance(answer, str):
            response |= {"content": {answer: {}}} if answer else {}
        else:
            response["content"] = {_JSON: {"schema": answer}}
        found["responses"][str(status)] = response
    return found


def _changes_refused(paths: dict[str, Any]) -> dict[str, Any]:
    """*paths*, where everything that changes something refuses a token that may only read."""
    refused = {"description": _MEANINGS[403], "content": {_PROBLEM: {"schema": ref("Problem")}}}
    for operations in paths.values():
        for method, operation in operations.items():
            if method not in ("get", "head"):
                operation["responses"]["403"] = refused
    return paths


def _bodiless(operation: Schema) -> Schema:
    """What answers HEAD: the same, without any body."""
    answers = {status: {"description": answer["description"]} for status, answer in operation["responses"].items()}
    return {**operation, "responses": answers}


def _path(name: str, schema: Schema | None = None) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema or {"type": "string", "minLength": 1}}


def _one(name: str, schema: Schema, description: str = "") -> Schema:
    described = {"description": description} if description else {}
    return {"name": name, "in": "query", "schema": schema, **described}


def _many(name: str, values: Any) -> Schema:
    schema = {"type": "array", "items": {"type": "string", "enum": [str(value) for value in values]}}
    return {"name": name, "in": "query", "schema": schema, "style": "form", "explode": False}


def _paging(prefix: str | None = None, *, most: int = 200) -> list[Schema]:
    """A cursor is an id of *prefix*, or else a number."""
    cursor = {"type": "string", "pattern": f"^{prefix}_[0-9a-z]{{26}}$" if prefix else "^[0-9]{1,18}$"}
    limit = {"type": "integer", "minimum": 1, "maximum": most, "default": 50}
    return [_one("cursor", cursor, "What `next` of the page before said."), _one("limit", limit)]


def _body(model: str, *, required: bool = True) -> Schema:
    return {"required": required, "content": {_JSON: {"schema": ref(model)}}}


def _optional_flag(name: str) -> Schema:
    schema = {"type": "object", "properties": {name: {"type": "boolean"}}}
    return {"required": False, "content": {_JSON: {"schema": schema}}}


def _version() -> str:
    try:
        return version("upscale-receiver")
    except PackageNotFoundError:
        return "0"
