"""
Novita upscale, the other end.

From https://novita.ai/docs/api-reference/model-apis-upscale, its task-result and webhook pages, and
https://novita.ai/docs/api-reference/basic-error-code.

Open on the pages and decided here: retries after 1, 2, 4, 8 and 16 s; links are not signed again by a later status
call; a test-mode event carries the returned task_id, is retried like any other, and is not billed.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from submitter.sandbox.files import File
from submitter.sandbox.stand_in import (
    CallbackRules,
    CallingStandIn,
    Handler,
    Refused,
    bearer,
    is_int,
    is_url,
    json_object,
    raw_base64,
    same_key,
    unknown,
)
from submitter.sandbox.tasks import Failing, Order, RemoteTask
from submitter.sandbox.upscaling import NotAnImage, Shape, Target

LARGEST_BYTES = 30 * 1024 * 1024
LARGEST_SIDE = 2048
MODELS = ("RealESRGAN_x4plus_anime_6B", "RealESRNet_x4plus", "4x-UltraSharp")
FORMATS = {"png": "PNG", "webp": "WEBP", "jpeg": "JPEG"}

_EXTRA = (
    "response_image_type",
    "webhook",
    "custom_storage",
    "enterprise_plan",
    "enable_nsfw_detection",
    "nsfw_detection_level",
)
_REQUEST = ("model_name", "image_base64", "scale_factor")


class Novita(CallingStandIn):
    name = "novita"
    mount = "/novita"
    running = ("TASK_STATUS_QUEUED", "TASK_STATUS_PROCESSING")
    succeeded = "TASK_STATUS_SUCCEED"
    failed = "TASK_STATUS_FAILED"
    announced = frozenset({"TASK_STATUS_SUCCEED", "TASK_STATUS_FAILED"})
    rules = CallbackRules(timeout_seconds=5.0, retry_delays_seconds=(1.0, 2.0, 4.0, 8.0, 16.0))
    link_seconds = 3600.0

    def routes(self, *, submit: Handler, status: Handler) -> list[BaseRoute]:
        return [
            Route("/v3/async/upscale", submit, methods=["POST"]),
            Route("/v3/async/task-result", status, methods=["GET"]),
        ]

    def admit(self, request: Request) -> None:
        if "authorization" not in request.headers:
            raise Refused(_refusal(400, "MISSING_API_KEY", "missing api key"))
        if not same_key(bearer(request), self.settings.api_keys[self.name]):
            raise Refused(_refusal(403, "INVALID_API_KEY", "invalid api key"))

    async def read(self, request: Request) -> Order:
        body = await json_object(request)
        if body is None:
            raise _invalid("the request body is not a JSON object")
        extra, asked = body.get("extra", {}), body.get("request")
        if not isinstance(asked, dict):
            raise _invalid("request is required")
        if not isinstance(extra, dict):
            raise _invalid("extra must be an object")
        _check_extra(extra)
        scale = _check_request(asked)
        image = await self._image(asked["image_base64"])
        webhook = extra.get("webhook") or {}
        test_mode = webhook.get("test_mode") or {}
        mocked = test_mode.get("enabled") is True
        outcome: Literal["succeeded", "failed"] | None = None
        if mocked:
            outcome = "succeeded" if test_mode["return_task_status"] == self.succeeded else "failed"
        image_type = extra.get("response_image_type", "png")
        return Order(
            source=image,
            target=lambda shape: _target(shape, scale, FORMATS[image_type]),
            options={
                **{name: extra[name] for name in _EXTRA if name in extra and name != "webhook"},
                **{name: asked[name] for name in _REQUEST if name in asked and name != "image_base64"},
            },
            callback_url=webhook.get("url"),
            unknown_fields=(
                *unknown(body, ("extra", "request")),
                *unknown(extra, _EXTRA, "extra."),
                *unknown(webhook, ("url", "test_mode"), "extra.webhook."),
                *unknown(asked, _REQUEST, "request."),
            ),
            outcome=outcome,
            billed=not mocked,
        )

    def accepted(self, request: Request, task: RemoteTask) -> Response:
        return JSONResponse({"task_id": task.id})

    def fault_response(self, fault: str) -> Response:
        return _refusal(*_FAULT_RESPONSES[fault])

    def not_found(self) -> Response:
        return _refusal(404, "API_NOT_FOUND", "api not found")

    def callback_body(self, task: RemoteTask, state: str) -> bytes:
        return _event(self._result(task) | {"extra": self._echo(task)})

    def forged_body(self, task: RemoteTask, image_url: str) -> bytes:
        image = _image_entry(image_url, "png", 3600)
        result = self._result(task) | {"extra": self._echo(task), "images": [image]}
        result["task"] = result["task"] | {"status": self.succeeded}
        return _event(result)

    def link(self, task: RemoteTask, file: File) -> str:
        query = urlencode(
            {
                "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
                "X-Amz-Credential": "SANDBOX/s3/aws4_request",
                "X-Amz-Date": datetime.fromtimestamp(file.created_at, UTC).strftime("%Y%m%dT%H%M%SZ"),
                "X-Amz-Expires": _lifetime(file),
                "X-Amz-SignedHeaders": "host",
                "x-id": "GetObject",
                "X-Amz-Signature": _link_signature(file),
            }
        )
        return f"{task.origin}{file.path}?{query}"

    @staticmethod
    def link_admits(file: File, query: Mapping[str, str], now: float) -> bool:
        given = query.get("X-Amz-Signature", "").encode()
        return now < file.expires_at and hmac.compare_digest(given, _link_signature(file).encode())

    def file_name(self, task: RemoteTask, suffix: str) -> str:
        return f"{secrets.token_hex(16)}.{'jpeg' if suffix == 'jpg' else suffix}"

    # --- The stand_in
    # ---------------------------------------------------------------------------------------------------

    async def looked_up(self, request: Request) -> Response:
        task_id = request.query_params.get("task_id")
        if not task_id:
            return _invalid("task_id is required").response
        task = self.tasks.find(self.name, task_id)
        if task is None:
            return _refusal(404, "TASK_NOT_FOUND", "task not found")
        task.status_calls += 1
        return JSONResponse(self._result(task))

    async def _image(self, text: Any) -> bytes:
        image = raw_base64(text)
        if image is None:
            raise Refused(_refusal(400, "INVALID_IMAGE_FORMAT", "image_base64 is not a base64 encoded image"))
        if len(image) > LARGEST_BYTES:
            raise Refused(_refusal(400, "IMAGE_FILE_EXCEEDS_MAX_SIZE", "the image is larger than 30 MB"))
        try:
            shape = await self.studio.inspect(image)
        except NotAnImage as exc:
            raise Refused(_refusal(400, "INVALID_IMAGE_FORMAT", "the image could not be decoded")) from exc
        if max(shape.width, shape.height) > LARGEST_SIDE:
            raise Refused(_refusal(400, "IMAGE_EXCEEDS_MAX_RESOLUTION", "the image is larger than 2048x2048"))
        return image

    def _result(self, task: RemoteTask) -> dict[str, Any]:
        done = task.state == self.succeeded
        return {
            "extra": {"enable_nsfw_detection": task.options.get("enable_nsfw_detection", False)},
            "task": {
                "task_id": task.id,
                "task_type": "UPSCALE",
                "status": task.state,
                "reason": "" if task.state != self.failed else _reason(task.failure),
                "eta": 0,
                "progress_percent": 0,
            },
            "images": [
                _image_entry(self.link(task, file), file.name.rpartition(".")[2], _lifetime(file))
                for file in task.files
                if done
            ],
            "videos": [],
            "audios": [],
        }

    def _echo(self, task: RemoteTask) -> dict[str, Any]:
        nsfw = task.options.get("enable_nsfw_detection", False)
        return {"enable_nsfw_detection": nsfw, "webhook": {"url": task.callback_url}}


_FAULT_RESPONSES = {
    "busy": (429, "RATE_LIMIT_EXCEEDED", "rate limit exceeded"),
    "unavailable": (503, "SERVICE_UNAVAILABLE", "service unavailable"),
    "server_error": (500, "CREATE_TASK_FAILED", "failed to create the task"),
    "bad_key": (401, "INVALID_API_KEY", "invalid api key"),
    "no_credit": (400, "BILLING_BALANCE_NOT_ENOUGH", "balance not enough"),
}


def _check_request(asked: Mapping[str, Any]) -> float:
    for name in _REQUEST:
        if name not in asked:
            raise _invalid(f"request.{name} is required")
    if asked["model_name"] not in MODELS:
        raise _invalid(f"request.model_name must be one of {', '.join(MODELS)}")
    scale = asked["scale_factor"]
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 1 < scale <= 4:
        raise _invalid("request.scale_factor must be a number in (1, 4]")
    return float(scale)


def _check_extra(extra: Mapping[str, Any]) -> None:
    if extra.get("response_image_type", "png") not in FORMATS:
        raise _invalid("extra.response_image_type must be png, webp or jpeg")
    if not isinstance(extra.get("enable_nsfw_detection", False), bool):
        raise _invalid("extra.enable_nsfw_detection must be a boolean")
    level = extra.get("nsfw_detection_level", 0)
    if not is_int(level) or level not in (0, 1, 2):
        raise _invalid("extra.nsfw_detection_level must be 0, 1 or 2")
    plan = extra.get("enterprise_plan", {})
    if not isinstance(plan, dict) or not isinstance(plan.get("enabled", False), bool):
        raise _invalid("extra.enterprise_plan.enabled must be a boolean")
    if "custom_storage" in extra:
        _check_storage(extra["custom_storage"])
    if "webhook" in extra:
        _check_webhook(extra["webhook"])


def _check_storage(storage: Any) -> None:
    bucket = storage.get("aws_s3") if isinstance(storage, dict) else None
    if not isinstance(bucket, dict) or not all(
        isinstance(bucket.get(name), str) for name in ("region", "bucket", "path")
    ):
        raise _invalid("extra.custom_storage.aws_s3 needs region, bucket and path")


def _check_webhook(webhook: Any) -> None:
    if not isinstance(webhook, dict) or not is_url(webhook.get("url")):
        raise _invalid("extra.webhook.url must be a URL")
    if "test_mode" in webhook:
        mode = webhook["test_mode"]
        if not isinstance(mode, dict) or not isinstance(mode.get("enabled"), bool):
            raise _invalid("extra.webhook.test_mode.enabled must be a boolean")
        if mode.get("return_task_status") not in (Novita.succeeded, Novita.failed):
            raise _invalid("extra.webhook.test_mode.return_task_status is not valid")


def _target(shape: Shape, scale: float, format: str) -> Target:
    return Target(round(shape.width * scale), round(shape.height * scale), format)


def _reason(failing: Failing | None) -> str:
    return (failing.message if failing else "") or "TASK_FAILED"


def _image_entry(url: str, image_type: str, seconds: int) -> dict[str, Any]:
    return {"image_url": url, "image_url_ttl": str(seconds), "image_type": image_type, "nsfw_detection_result": None}


def _lifetime(file: File) -> int:
    return round(file.expires_at - file.created_at)


def _link_signature(file: File) -> str:
    return hmac.digest(file.id.encode(), file.path.encode(), "sha256").hex()


def _refusal(status: int, reason: str, message: str) -> Response:
    return JSONResponse({"code": status, "reason": reason, "message": message, "metadata": {}}, status)


def _invalid(message: str) -> Refused:
    return Refused(_refusal(400, "INVALID_REQUEST_BODY", message))


def _event(payload: Mapping[str, Any]) -> bytes:
    return json.dumps({"event_type": "ASYNC_TASK_RESULT", "payload": payload}, separators=(",", ":")).encode()
