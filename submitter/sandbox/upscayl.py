"""
Upscayl Cloud, the other end.

From https://docs.upscayl.org/start-task and https://docs.upscayl.org/get-task-status; the result links, the lower-case
state words (a setting) and the 401, 404 and 429 texts from the older descriptions in the vendor's repository.

Open on the pages and decided here: ten credits an image, links that live a day, a wrong key is 401. `files` is refused,
because the upload call that it belongs to is not part of the sandbox.
"""

from __future__ import annotations

import json
import time
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from submitter.sandbox.files import File
from submitter.sandbox.stand_in import Handler, Refused, StandIn, content_type, is_url, json_object, same_key, unknown
from submitter.sandbox.tasks import Failing, Order, RemoteTask
from submitter.sandbox.upscaling import NotAnImage, Shape, Target

MODELS = (
    "upscayl-standard-4x",
    "upscayl-lite-4x",
    "clear-boost-4x",
    "crystal-plus-4x",
    "digital-art-4x",
    "digital-art-plus-4x",
    "natural-max-4x",
    "natural-plus-4x",
    "nature-boost-4x",
    "pure-boost-4x",
    "quick-clear-4x",
    "texture-boost-4x",
)
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
CREDITS = 10

_INPUTS = ("file", "files", "urls")
_FIELDS = ("enhanceFace", "model", "scale", "saveImageAs", *_INPUTS)
_OLDER_WORDS = {
    "ENHANCING": "pending",
    "PROCESSING": "processing",
    "PROCESSED": "completed",
    "PROCESSING_FAILED": "failed",
}
_PROGRESS = {"ENHANCING": "0", "PROCESSING": "50", "PROCESSED": "100", "PROCESSING_FAILED": "0"}


class Upscayl(StandIn):
    name = "upscayl"
    mount = "/upscayl"
    running = ("ENHANCING", "PROCESSING")
    succeeded = "PROCESSED"
    failed = "PROCESSING_FAILED"
    link_seconds = 24 * 3600.0

    def routes(self, *, submit: Handler, status: Handler) -> list[BaseRoute]:
        return [
            Route("/start-task", submit, methods=["POST"]),
            Route("/get-task-status", status, methods=["POST"]),
        ]

    def admit(self, request: Request) -> None:
        given = request.headers.get("x-api-key")
        if not given:
            raise _bad_request("Missing User")
        if not same_key(given, self.settings.api_keys[self.name]):
            raise Refused(self.fault_response("bad_key"))

    async def read(self, request: Request) -> Order:
        if content_type(request) != "multipart/form-data":
            raise _bad_request("Invalid content type")
        try:
            form = await request.form()
        except (HTTPException, MultiPartException) as exc:
            raise _bad_request("Invalid form data") from exc
        try:
            scale, format = _checked(form)
            source = await self._input(form)
        finally:
            await form.close()
        return Order(
            source=source,
            target=lambda shape: _target(shape, scale, format),
            options={name: str(form[name]) for name in _FIELDS if name in form and name not in _INPUTS},
            unknown_fields=tuple(unknown(dict(form), _FIELDS)),
            billed=False,
        )

    def accepted(self, request: Request, task: RemoteTask) -> Response:
        data = {"message": "Task request sent successfully", "taskId": task.id, "creditsToDeduct": CREDITS}
        return JSONResponse({"status": "success", "data": data}, headers={"x-task-cost": str(CREDITS)})

    def fault_response(self, fault: str) -> Response:
        match fault:
            case "busy":
                return PlainTextResponse("Too many requests. Try again in 1 hour", 429)
            case "unavailable":
                return PlainTextResponse("Service Unavailable", 503)
            case "bad_key":
                return JSONResponse({"error": "UNAUTHORIZED", "message": "Invalid API key"}, 401)
            case "no_credit":
                return JSONResponse("Insufficient credits", 402)
            case _:
                return JSONResponse("Error processing request", 500)

    def not_found(self) -> Response:
        return PlainTextResponse("Not Found", 404)

    def file_name(self, task: RemoteTask, suffix: str) -> str:
        return f"{task.id}.{suffix}"

    # --- The stand_in
    # ---------------------------------------------------------------------------------------------------

    async def looked_up(self, request: Request) -> Response:
        body = await json_object(request)
        asked = body.get("data", body) if body is not None else None
        task_id = asked.get("taskId") if isinstance(asked, dict) else None
        if not isinstance(task_id, str) or not task_id:
            return PlainTextResponse("Bad Request: Missing User ID or Task ID", 400)
        task = self.tasks.find(self.name, task_id)
        if task is None:
            return PlainTextResponse("No such document", 404)
        task.status_calls += 1
        if task.state == self.succeeded and not task.triggered:
            task.billed = True  # documented: asking about a processed task deducts its credits
        return JSONResponse({"status": "success", "data": self._detail(task)})

    async def _input(self, form: FormData) -> bytes | str:
        """Return the file's bytes, or the URL: a text part with a URL, or with a JSON array of a single URL."""
        file = form.get("file")
        if file is not None:
            if not isinstance(file, UploadFile):
                raise _bad_request("file must be a file")
            data = await file.read()
            try:
                shape = await self.studio.inspect(data)
            except NotAnImage as exc:
                raise _bad_file("INVALID_FILE_TYPE", "The file is not an image") from exc
            if shape.format not in FORMATS.values():
                raise _bad_file("INVALID_FILE_TYPE", "Supported formats: JPG, PNG, WEBP")
            return data
        urls: Any = form.getlist("urls")
        if len(urls) == 1 and isinstance(urls[0], str) and urls[0].lstrip().startswith("["):
            try:
                urls = json.loads(urls[0])
            except ValueError as exc:
                raise _bad_request("Invalid urls") from exc
        if len(urls) != 1 or not is_url(urls[0]):
            raise _bad_request("Invalid urls")
        return str(urls[0])

    def _detail(self, task: RemoteTask) -> dict[str, Any]:
        older = self.settings.upscayl_older_words
        detail: dict[str, Any] = {
            "status": _OLDER_WORDS[task.state] if older else task.state,
            "progress": _PROGRESS[task.state],
            "files": [self._file(task, file) for file in task.files if task.state == self.succeeded],
            "deductedCredits": CREDITS if task.billed else 0,
            "creditsDeducted": task.billed,
            "model": task.options.get("model", MODELS[0]),
            "scale": int(task.options.get("scale", 4)),
            "saveImageAs": task.options.get("saveImageAs", "jpg"),
            "compression": 0,
            "batchMode": False,
        }
        if task.state == self.failed:
            detail["error"] = (task.failure.message if task.failure else "") or "Error processing image"
        return detail

    def _file(self, task: RemoteTask, file: File) -> dict[str, Any]:
        link = self.link(task, file)
        return {
            "fileName": file.name,
            "fileType": file.content_type,
            "fileSize": len(file.data),
            "originalFileName": file.name,
            "path": f"users/sandbox/{file.name}",
            "createdAt": int(file.created_at),
            "expiresAt": int(time.time() if file.dead else file.expires_at),
            "dimensions": {"width": file.width, "height": file.height},
            "downloadLink": link,
            "thumbnailLink": link,
        }


def _checked(form: FormData) -> tuple[int, str]:
    """Return scale and output format of a form whose text fields are complete and in range."""
    for name in ("enhanceFace", "model", "scale", "saveImageAs"):
        if not isinstance(form.get(name), str):
            raise _bad_request(f"Missing {name}")
    given = [name for name in _INPUTS if name in form]
    if len(given) != 1:
        raise _bad_request("Exactly one of file, files and urls is required")
    if given == ["files"]:
        raise _bad_request("files needs uploads made with Get Upload URL")
    if form["enhanceFace"] not in ("true", "false"):
        raise _bad_request("Invalid enhanceFace")
    if form["model"] not in MODELS:
        raise _bad_request("Invalid model")
    if form["scale"] not in tuple("12345678"):
        raise _bad_request("Invalid scale")
    if form["saveImageAs"] not in FORMATS:
        raise _bad_request("Invalid saveImageAs")
    return int(str(form["scale"])), FORMATS[str(form["saveImageAs"])]


def _target(shape: Shape, scale: int, format: str) -> Target:
    if shape.format not in FORMATS.values():
        raise Failing("undecodable", "Supported formats: JPG, PNG, WEBP")
    return Target(shape.width * scale, shape.height * scale, format)


def _bad_request(why: str) -> Refused:
    return Refused(JSONResponse(f"Bad Request: {why}", 400))


def _bad_file(code: str, message: str) -> Refused:
    return Refused(JSONResponse({"error": code, "message": message}, 400))
