"""
Pixelcut upscale, the other end: one call that blocks until the image is done.

From https://www.pixelcut.ai/docs/api-reference/upscale, its rate-limit and credit pages.

Open on the pages and decided here: an input below 64x64 and one whose output would exceed 6000x6000 are refused
(`invalid_parameter`, `resolution_too_high`), an image URL that can't be fetched is `invalid_parameter`, and a task
that fails ends as `malformed_image`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from submitter.sandbox.stand_in import (
    Handler,
    Refused,
    StandIn,
    content_type,
    is_int,
    is_url,
    json_object,
    same_key,
    unknown,
)
from submitter.sandbox.tasks import Failing, Order, RemoteTask
from submitter.sandbox.upscaling import NotAnImage, Shape, Target

LARGEST_BYTES = 25 * 1024 * 1024
SMALLEST_SIDE = 64
LARGEST_SIDE = 6000

_FORMATS = ("JPEG", "PNG", "WEBP")


class Pixelcut(StandIn):
    name = "pixelcut"
    mount = "/pixelcut"
    running = ("running",)
    succeeded = "done"
    failed = "failed"
    synchronous = True
    link_seconds = 3600.0
    gone_status = 410

    def routes(self, *, submit: Handler, status: Handler) -> list[BaseRoute]:
        return [Route("/v1/upscale", submit, methods=["POST"])]

    def admit(self, request: Request) -> None:
        if not same_key(request.headers.get("x-api-key"), self.settings.api_keys[self.name]):
            raise Refused(self.fault_response("bad_key"))

    async def read(self, request: Request) -> Order:
        match content_type(request):
            case "application/json":
                body = await json_object(request)
                if body is None:
                    raise _bad("invalid_request_body", "The request body was empty or invalid")
                fields, image, scale = body, None, body.get("scale")
            case "multipart/form-data":
                fields, image = await _form(request)
                scale = int(fields["scale"]) if fields.get("scale") in ("2", "4") else fields.get("scale")
            case _:
                raise _bad("unsupported_content_type", "Use application/json or multipart/form-data")
        if "scale" not in fields:
            raise _bad("missing_parameter", "Missing parameter: scale")
        if not is_int(scale) or scale not in (2, 4):
            raise _bad("invalid_parameter", "Invalid parameter: scale")
        if image is None:
            image = await self._fetched(fields)
        await self._check(image, int(scale))
        return Order(
            source=image,
            target=lambda shape: _target(shape, int(scale)),
            options={"scale": int(scale)},
            unknown_fields=tuple(unknown(fields, ("image", "image_url", "scale"))),
        )

    def accepted(self, request: Request, task: RemoteTask) -> Response:
        if task.state == self.failed:
            task.billed = False  # documented: failures usually cost nothing
            return _bad("malformed_image", "The image could not be decoded").response
        file = task.files[0]
        if _wants_bytes(request.headers.get("accept", "")):
            return Response(file.data, media_type=file.content_type)
        return JSONResponse({"result_url": self.link(task, file)})

    def fault_response(self, fault: str) -> Response:
        match fault:
            case "busy":
                return _error(429, "rate_limit_exceeded", "Too many requests")
            case "unavailable":
                return PlainTextResponse("Service Unavailable", 503)
            case "bad_key":
                return _error(401, "invalid_auth_token", "API Token not found")
            case "no_credit":
                return _error(403, "insufficient_api_credits", "Insufficient credits available")
            case _:
                return Response(status_code=500)

    def not_found(self) -> Response:
        return PlainTextResponse("Not Found", 404)

    # --- The stand_in
    # ---------------------------------------------------------------------------------------------------

    async def _fetched(self, fields: Mapping[str, Any]) -> bytes:
        if "image_url" not in fields:
            raise _bad("missing_parameter", "Missing parameter: image_url")
        if not is_url(fields["image_url"]):
            raise _bad("invalid_parameter", "Invalid parameter: image_url")
        try:
            return await self.outbound.fetch(fields["image_url"])
        except Failing as exc:
            raise _bad("invalid_parameter", "Invalid parameter: image_url") from exc

    async def _check(self, image: bytes, scale: int) -> None:
        if len(image) > LARGEST_BYTES:
            raise _bad("file_size_too_large", "File size too large")
        try:
            shape = await self.studio.inspect(image)
        except NotAnImage as exc:
            raise _bad("malformed_image", "The image could not be decoded") from exc
        if shape.format not in _FORMATS:
            raise _bad("unsupported_image_format", "The image format is not supported")
        if min(shape.width, shape.height) < SMALLEST_SIDE:
            raise _bad("invalid_parameter", "The image resolution is too low")
        if max(shape.width, shape.height) * scale > LARGEST_SIDE:
            raise _bad("resolution_too_high", "The image resolution is too high")


async def _form(request: Request) -> tuple[dict[str, Any], bytes | None]:
    try:
        form = await request.form()
    except (HTTPException, MultiPartException) as exc:
        raise _bad("invalid_request_body", "The request body was empty or invalid") from exc
    try:
        image = form.get("image")
        if image is not None and not isinstance(image, UploadFile):
            raise _bad("invalid_parameter", "Invalid parameter: image")
        return dict(form), None if image is None else await image.read()
    finally:
        await form.close()


def _wants_bytes(accept: str) -> bool:
    """Return whether the first acceptable type that we can produce is an image."""
    for wanted in accept.split(","):
        kind = wanted.partition(";")[0].strip().lower()
        if kind in ("application/json", "*/*", "application/*"):
            return False
        if kind.startswith("image/"):
            return True
    return False


def _target(shape: Shape, scale: int) -> Target:
    return Target(shape.width * scale, shape.height * scale, "PNG" if shape.alpha else "JPEG")


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": message, "error_code": code}, status)


def _bad(code: str, message: str) -> Refused:
    return Refused(_error(400, code, message))
