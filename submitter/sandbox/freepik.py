"""
Freepik (now Magnific) image-upscaler, the other end.

From https://docs.freepik.com/api-reference/image-upscaler-creative/post-image-upscaler (and its GET page),
https://docs.freepik.com/webhooks and https://docs.freepik.com/ratelimits.

Open on the pages and decided here: CREATED is announced like every other state; there are no retries; an
empty balance is 403; links live two hours and are signed again by every status call.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from submitter.sandbox.files import File
from submitter.sandbox.stand_in import (
    CallbackRules,
    CallingStandIn,
    Handler,
    Refused,
    is_int,
    is_url,
    json_object,
    raw_base64,
    same_key,
    unknown,
)
from submitter.sandbox.tasks import Failing, Order, RemoteTask
from submitter.sandbox.upscaling import NotAnImage, Shape, Target

LARGEST_OUTPUT_PIXELS = 25_300_000

_ENUMS: dict[str, tuple[str, ...]] = {
    "scale_factor": ("2x", "4x", "8x", "16x"),
    "optimized_for": (
        "standard",
        "soft_portraits",
        "hard_portraits",
        "art_n_illustration",
        "videogame_assets",
        "nature_n_landscapes",
        "films_n_photography",
        "3d_renders",
        "science_fiction_n_horror",
    ),
    "engine": ("automatic", "magnific_illusio", "magnific_sharpy", "magnific_sparkle"),
}
_STRENGTHS = ("creativity", "hdr", "resemblance", "fractality")
_FIELDS = ("image", "webhook_url", "prompt", "filter_nsfw", *_ENUMS, *_STRENGTHS)


class Freepik(CallingStandIn):
    name = "freepik"
    mount = "/freepik"
    running = ("CREATED", "IN_PROGRESS")
    succeeded = "COMPLETED"
    failed = "FAILED"
    announced = frozenset({"CREATED", "IN_PROGRESS", "COMPLETED", "FAILED"})
    rules = CallbackRules(timeout_seconds=10.0)
    link_seconds = 7200.0

    def routes(self, *, submit: Handler, status: Handler) -> list[BaseRoute]:
        return [
            Route("/v1/ai/image-upscaler", submit, methods=["POST"]),
            Route("/v1/ai/image-upscaler/{id}", status, methods=["GET"]),
        ]

    def admit(self, request: Request) -> None:
        given = request.headers.get(self.settings.freepik_api_key_header)
        if not given:
            raise Refused(_message(401, "Missing API key"))
        if not same_key(given, self.settings.api_keys[self.name]):
            raise Refused(_message(401, "Invalid API key"))

    async def read(self, request: Request) -> Order:
        body = await json_object(request)
        if body is None:
            raise Refused(_message(400, "The request body is not valid"))
        image = raw_base64(body.get("image"))
        wrong = {name: f"Parameter '{name}' is not valid" for name in _wrong(body)}
        if image is None:
            wrong["image"] = "Parameter 'image' " + ("is not valid" if body.get("image") else "must not be empty")
        if image is None or wrong:
            raise Refused(_invalid(wrong))
        scale = int(body.get("scale_factor", "2x").removesuffix("x"))
        try:
            shape = await self.studio.inspect(image)
        except NotAnImage as exc:
            raise Refused(_invalid({"image": "Parameter 'image' is not valid"})) from exc
        if shape.width * shape.height * scale * scale > LARGEST_OUTPUT_PIXELS:
            raise Refused(_message(400, "The resulted image can't exceed maximum allowed size of 25.3 million pixels."))
        return Order(
            source=image,
            target=lambda shape: _target(shape, scale),
            options={name: body[name] for name in _FIELDS if name in body and name not in ("image", "webhook_url")},
            callback_url=body.get("webhook_url"),
            unknown_fields=tuple(unknown(body, _FIELDS)),
        )

    def accepted(self, request: Request, task: RemoteTask) -> Response:
        return JSONResponse({"data": self._detail(task, task.state)})

    def fault_response(self, fault: str) -> Response:
        return _message(*_FAULT_RESPONSES[fault])

    def not_found(self) -> Response:
        return _message(404, "Not Found")

    def callback_body(self, task: RemoteTask, state: str) -> bytes:
        return _json(self._detail(task, state))

    def callback_headers(self, body: bytes) -> dict[str, str]:
        return self._signed(body, self._secret())

    def forged_body(self, task: RemoteTask, image_url: str) -> bytes:
        return _json({"task_id": task.id, "status": self.succeeded, "generated": [image_url]})

    def forged_headers(self, body: bytes) -> dict[str, str]:
        return self._signed(body, secrets.token_bytes(32))

    def link(self, task: RemoteTask, file: File) -> str:
        until = int(time.time() + file.expires_at - file.created_at)
        return f"{task.origin}{file.path}?token=exp={until}~hmac={_link_mac(file, until)}"

    @staticmethod
    def link_admits(file: File, query: Mapping[str, str], now: float) -> bool:
        exp, _, mac = query.get("token", "").removeprefix("exp=").partition("~hmac=")
        if not exp.isascii() or not exp.isdigit() or len(exp) > 12:
            return False
        return now < int(exp) and hmac.compare_digest(mac.encode(), _link_mac(file, int(exp)).encode())

    # --- The stand_in
    # ---------------------------------------------------------------------------------------------------

    async def looked_up(self, request: Request) -> Response:
        task = self.tasks.find(self.name, request.path_params["id"])
        if task is None:
            return _message(404, "Task not found")
        task.status_calls += 1
        return JSONResponse({"data": self._detail(task, task.state)})

    def _detail(self, task: RemoteTask, state: str) -> dict[str, Any]:
        done = state == self.succeeded
        return {
            "task_id": task.id,
            "status": state,
            "generated": [self.link(task, file) for file in task.files] if done else [],
        }

    def _secret(self) -> bytes:
        secret = self.settings.freepik_webhook_secret
        match self.settings.freepik_webhook_secret_encoding:
            case "base64":
                return base64.b64decode(secret)
            case "hex":
                return binascii.unhexlify(secret)
            case _:
                return secret.encode()

    def _signed(self, body: bytes, key: bytes) -> dict[str, str]:
        delivery, timestamp = f"msg_{secrets.token_hex(12)}", str(int(time.time()))
        content = f"{delivery}.{timestamp}.".encode() + body
        digest = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
        return {
            "content-type": "application/json",
            "webhook-id": delivery,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{digest}",
        }


_FAULT_RESPONSES = {
    "busy": (429, "Too many requests"),
    "unavailable": (503, "Service Unavailable. Please try again later."),
    "server_error": (500, "Internal Server Error"),
    "bad_key": (401, "Invalid API key"),
    "no_credit": (403, "Error consuming credits"),
}


def _wrong(body: Mapping[str, Any]) -> list[str]:
    """Return the names of optional fields with values that the schema does not allow."""
    checks: dict[str, bool] = {name: body.get(name, values[0]) in values for name, values in _ENUMS.items()}
    for name in _STRENGTHS:
        value = body.get(name, 0)
        checks[name] = is_int(value) and -10 <= value <= 10
    checks["prompt"] = isinstance(body.get("prompt", ""), str)
    checks["filter_nsfw"] = isinstance(body.get("filter_nsfw", False), bool)
    checks["webhook_url"] = "webhook_url" not in body or is_url(body["webhook_url"])
    return [name for name, fine in checks.items() if not fine]


def _target(shape: Shape, scale: int) -> Target:
    if shape.width * shape.height * scale * scale > LARGEST_OUTPUT_PIXELS:
        raise Failing("", "")
    return Target(shape.width * scale, shape.height * scale, "PNG" if shape.alpha else "JPEG")


def _message(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)


def _invalid(wrong: Mapping[str, str]) -> Response:
    """Report one wrong field in plain JSON, several as a problem: the page shows both."""
    if len(wrong) == 1:
        return _message(400, next(iter(wrong.values())))
    params = [{"name": name, "reason": reason} for name, reason in wrong.items()]
    body = {"message": "Your request parameters didn't validate.", "invalid_params": params}
    return JSONResponse(body, 400, media_type="application/problem+json")


def _link_mac(file: File, until: int) -> str:
    return hmac.digest(file.id.encode(), f"exp={until}~path={file.path}".encode(), hashlib.sha256).hex()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
