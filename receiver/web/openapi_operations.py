"""The building blocks of operations in `/openapi.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from receiver.domain.entity import Schema
from receiver.web.openapi_schemas import ref

TEXT = {"type": "string"}
MOMENT = {"type": "string", "format": "date-time"}
JSON, PROBLEM, STREAM = "application/json", "application/problem+json", "text/event-stream"
MEANINGS = {
    200: "OK.",
    201: "Created.",
    202: "Accepted.",
    204: "Done.",
    400: "The body can't be read.",
    401: "No bearer token, or a wrong one; for a callback, an invalid signature.",
    403: "The token may read and change nothing.",
    404: "Not found.",
    408: "The body arrived too slowly.",
    409: "Not possible in the current state.",
    413: "Too large.",
    415: "An unsupported media type.",
    422: "The request is invalid; `field` and `remedy` say what to change.",
    429: "Too many: try again after `Retry-After`.",
    503: "Internal error: try again after `Retry-After`.",
}


def operation(
    tag: str,
    summary: str,
    answers: Mapping[int, Schema | str | None],
    parameters: Sequence[Schema] = (),
    *,
    body: Schema | None = None,
) -> dict[str, Any]:
    """Build an operation. An answer is a schema, a media type, "" for no body, or None for a problem."""
    found: dict[str, Any] = {"tags": [tag], "summary": summary, "responses": {}}
    if parameters:
        found["parameters"] = list(parameters)
    if body is not None:
        found["requestBody"] = body
    for status, answer in {**answers, 401: None, 503: None}.items():
        response: dict[str, Any] = {"description": MEANINGS[status]}
        if answer is None:
            response["content"] = {PROBLEM: {"schema": ref("Problem")}}
        elif isinstance(answer, str):
            response |= {"content": {answer: {}}} if answer else {}
        else:
            response["content"] = {JSON: {"schema": answer}}
        found["responses"][str(status)] = response
    return found


def changes_refused(paths: dict[str, Any]) -> dict[str, Any]:
    """Return *paths* with a refusal of read-only tokens added to every operation that changes something."""
    refused = {"description": MEANINGS[403], "content": {PROBLEM: {"schema": ref("Problem")}}}
    for operations in paths.values():
        for method, described in operations.items():
            if method not in ("get", "head"):
                described["responses"]["403"] = refused
    return paths


def bodiless(described: Schema) -> Schema:
    """Return the description of HEAD: the same, without any body."""
    answers = {status: {"description": answer["description"]} for status, answer in described["responses"].items()}
    return {**described, "responses": answers}


def path_parameter(name: str, schema: Schema | None = None) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema or {"type": "string", "minLength": 1}}


def query_parameter(name: str, schema: Schema, description: str = "") -> Schema:
    described = {"description": description} if description else {}
    return {"name": name, "in": "query", "schema": schema, **described}


def query_list(name: str, values: Any) -> Schema:
    schema = {"type": "array", "items": {"type": "string", "enum": [str(value) for value in values]}}
    return {"name": name, "in": "query", "schema": schema, "style": "form", "explode": False}


def paging(prefix: str | None = None, *, most: int = 200) -> list[Schema]:
    """Return the parameters of paging. A cursor is an id with *prefix*, or else a number."""
    cursor = {"type": "string", "pattern": f"^{prefix}_[0-9a-z]{{26}}$" if prefix else "^[0-9]{1,18}$"}
    limit = {"type": "integer", "minimum": 1, "maximum": most, "default": 50}
    return [query_parameter("cursor", cursor, "`next` of the page before."), query_parameter("limit", limit)]


def body_of(model: str, *, required: bool = True) -> Schema:
    return {"required": required, "content": {JSON: {"schema": ref(model)}}}


def optional_flag(name: str) -> Schema:
    schema = {"type": "object", "properties": {name: {"type": "boolean"}}}
    return {"required": False, "content": {JSON: {"schema": schema}}}
