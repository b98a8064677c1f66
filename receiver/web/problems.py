"""Errors of the API: RFC 9457 problem+json with a stable `code`, the field, and the remedy."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

PROBLEM_JSON = "application/problem+json"
_TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    413: "Too large",
    415: "Unsupported media type",
    422: "Invalid request",
    429: "Too many requests",
    500: "Internal error",
    503: "Not now",
}


class Problem(Exception):
    """An answer that is not a success. `detail` says what is wrong, `remedy` what to change."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        remedy: str,
        field: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field
        self.remedy = remedy
        self.headers = headers or {}
        self.more = more

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": f"urn:upscale-receiver:problem:{self.code}",
            "title": _TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.field is not None:
            body["field"] = self.field
        return {**body, "remedy": self.remedy, **self.more}

    def to_response(self) -> Response:
        return Response(
            json.dumps(self.to_json(), ensure_ascii=False).encode(),
            self.status,
            headers=self.headers,
            media_type=PROBLEM_JSON,
        )


NOT_FOUND = Problem(404, "not_found", "there is nothing here", remedy="/openapi.json lists what there is")


async def answer_problem(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Problem)
    return exc.to_response()


def busy(detail: str = "too much waits for the disk") -> Problem:
    """Return the answer to an internal error: try again later."""
    return Problem(503, "unavailable", detail, remedy="try again later", headers={"retry-after": "5"})


def no_such_job() -> Problem:
    return Problem(404, "no_such_job", "there is no such job", field="id", remedy="GET /v1/jobs lists them")
