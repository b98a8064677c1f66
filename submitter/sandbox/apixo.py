"""
APIXO image-upscaler, the other end.

From https://apixo.ai/docs/models/image-upscaler, https://apixo.ai/docs/api-reference/status-task,
https://apixo.ai/docs/api-reference/webhooks and https://apixo.ai/docs/api-reference/errors.

Softer than the real one in one point: `callback_url` and the input may be plain http, and on loopback. Open on the
pages and decided here: the long sides of the tiers (2048, 3840, 7680; nothing is made smaller), where a refusal's text
stands (`message` and `data.error`), and that 410 answers a dead link.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from submitter.sandbox.stand_in import (
    CallbackRules,
    CallingStandIn,
    Handler,
    Refused,
    bearer,
    is_url,
    json_object,
    same_key,
    unknown,
)
from submitter.sandbox.tasks import Failing, Order, RemoteTask
from submitter.sandbox.upscaling import Shape, Target

LONG_SIDES = {"2k": 2048, "4k": 3840, "8k": 7680}
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}

_MODEL = "image-upscaler"
_TOP = ("request_type", "callback_url", "input", "provider")
_INPUT = ("mode", "image_urls", "resolution", "output_format")


class Apixo(CallingStandIn):
    name = "apixo"
    mount = "/apixo/api/v1"
    running = ("pending", "processing")
    succeeded = "success"
    failed = "failed"
    announced = frozenset({"success", "failed"})
    rules = CallbackRules(
        timeout_seconds=30.0, retry_delays_seconds=(30.0, 120.0, 600.0), content_with=frozenset({200})
    )
    link_seconds = 24 * 3600.0
    gone_status = 410

    def routes(self, *, submit: Handler, status: Handler) -> list[BaseRoute]:
        return [
            Route("/generateTask/image-upscaler", submit, methods=["POST"]),
            Route("/statusTask/{model}", status, methods=["GET"]),
        ]

    def admit(self, request: Request) -> None:
        if not same_key(bearer(request), self.settings.api_keys[self.name]):
            raise Refused(self.fault_response("bad_key"))

    async def read(self, request: Request) -> Order:
        body = await json_object(request)
        if body is None:
            raise _bad_request("Invalid request body")
        request_type = body.get("request_type", "async")
        if request_type not in ("async", "callback"):
            raise _bad_request("The parameter {{request_type}} must be either 'async' or 'callback'.")
        callback_url = body.get("callback_url")
        if request_type == "callback" and not callback_url:
            raise _missing("callback_url")
        if callback_url is not None and not is_url(callback_url):
            raise _bad_request("The parameter {{callback_url}} must be a valid URL.")
        asked = body.get("input")
        if not isinstance(asked, dict):
            raise _missing("input")
        image_url, resolution, output_format = _checked(asked)
        return Order(
            source=image_url,
            target=lambda shape: _target(shape, LONG_SIDES[resolution], FORMATS[output_format]),
            options={
                "request_type": request_type,
                **{name: asked[name] for name in _INPUT if name in asked and name != "image_urls"},
            },
            callback_url=callback_url if request_type == "callback" else None,
            unknown_fields=(*unknown(body, _TOP), *unknown(asked, _INPUT, "input.")),
        )

    def accepted(self, request: Request, task: RemoteTask) -> Response:
        return JSONResponse(_envelope({"taskId": task.id}))

    def fault_response(self, fault: str) -> Response:
        return _refusal(*_FAULT_RESPONSES[fault])

    def not_found(self) -> Response:
        return _refusal(404, "Not found")

    def new_id(self) -> str:
        return f"task_{secrets.token_hex(8)}"

    def callback_body(self, task: RemoteTask, state: str) -> bytes:
        return _json(_envelope(self._detail(task)))

    def forged_body(self, task: RemoteTask, image_url: str) -> bytes:
        detail = self._detail(task) | {
            "state": self.succeeded,
            "resultJson": json.dumps({"resultUrls": [image_url]}),
            "completeTime": _milliseconds(task.accepted_at) + 41_388,
            "costTime": 41_388,
        }
        return _json(_envelope(detail))

    # --- The stand_in
    # ---------------------------------------------------------------------------------------------------

    async def looked_up(self, request: Request) -> Response:
        task_id = request.query_params.get("taskId")
        if not task_id:
            return _missing("taskId").response
        task = self.tasks.find(self.name, task_id)
        if task is None or request.path_params["model"] != _MODEL:
            return _refusal(404, "Task not found")
        task.status_calls += 1
        return JSONResponse(_envelope(self._detail(task)))

    def _detail(self, task: RemoteTask) -> dict[str, Any]:
        detail: dict[str, Any] = {"taskId": task.id, "state": task.state}
        times: dict[str, Any] = {"createTime": _milliseconds(task.accepted_at)}
        if task.finished_at is not None:
            times["completeTime"] = _milliseconds(task.finished_at)
        if task.state == self.succeeded:
            urls = [self.link(task, file) for file in task.files]
            detail["resultJson"] = json.dumps({"resultUrls": urls}, separators=(",", ":"))
            times["costTime"] = times["completeTime"] - times["createTime"]
        if task.state == self.failed:
            detail["failCode"], detail["failMsg"] = _failure(task.failure)
        return detail | times


_FAULT_RESPONSES = {
    "busy": (429, "Rate limit or concurrency limit reached"),
    "unavailable": (503, "Service unavailable"),
    "server_error": (500, "Internal server error"),
    "bad_key": (401, "Missing or invalid API key"),
    "no_credit": (402, "Insufficient balance or quota"),
}


def _checked(asked: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return image URL, resolution and output format, checked in the order and words of the page's table."""
    if asked.get("mode", "image-to-image") != "image-to-image":
        raise _bad_request("Invalid mode type. Supported: image-to-image")
    urls = asked.get("image_urls")
    if urls is None:
        raise _missing("image_urls")
    if not isinstance(urls, list):
        raise _bad_request("The parameter {{image_urls}} must be Array type.")
    if len(urls) != 1:
        raise _bad_request("The parameter {{image_urls}} must contain exactly 1 image.")
    if not isinstance(urls[0], str):
        raise _bad_request("The parameter {{image_urls}} Array elements must be String type.")
    if not urls[0].strip():
        raise _bad_request("The parameter {{image_urls}} cannot contain empty string.")
    resolution = asked.get("resolution", "4k")
    if not isinstance(resolution, str) or resolution.lower() not in LONG_SIDES:
        raise _bad_request("The parameter {{resolution}} must be either '2k', '4k' or '8k'.")
    output_format = asked.get("output_format", "jpg")
    if not isinstance(output_format, str) or output_format not in FORMATS:
        raise _bad_request("The parameter {{output_format}} must be either 'jpg', 'png' or 'webp'.")
    return urls[0], resolution.lower(), output_format


def _target(shape: Shape, long_side: int, format: str) -> Target:
    if shape.format not in ("JPEG", "PNG", "WEBP"):
        raise Failing("undecodable", "not a JPG, PNG or WebP image")
    factor = max(1.0, long_side / max(shape.width, shape.height))
    return Target(max(1, round(shape.width * factor)), max(1, round(shape.height * factor)), format)


def _failure(failing: Failing | None) -> tuple[str, str]:
    if failing is not None and failing.code in ("unreachable", "undecodable"):
        return "ImageFormatIncorrect", "The upstream service rejected the input image format."
    return "Unknown error", "Unknown error."


def _envelope(data: Any) -> dict[str, Any]:
    return {"code": 200, "message": "success", "data": data}


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"code": status, "message": message, "data": {"error": message}}, status)


def _bad_request(message: str) -> Refused:
    return Refused(_refusal(400, message))


def _missing(name: str) -> Refused:
    return _bad_request(f"The required parameter {{{{{name}}}}} is missing.")


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
