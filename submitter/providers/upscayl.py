"""
Upscayl Cloud.

Written from these pages, read 2026-11:
- https://docs.upscayl.org/start-task and https://docs.upscayl.org/get-task-status
- https://github.com/upscayl/upscayl (docs/openapi.yaml) for the rates, the error codes and older names

Quirks: there are no callbacks. The status call is a POST, may itself deduct the credits, and is limited to 100 an hour
in the vendor's own description, so the rhythm grows. Two nested `status`: of the call and of the task. Older versions
used other status words, in lower case. The present page names no field for the download link; `downloadLink` is what
older pages and real clients know. Status answers do not name the task. Errors are JSON texts, objects or plain text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import httpx
from pydantic import Field

from submitter import parsing
from submitter.errors import AccountRefused, ProviderBusy, ProviderError, ProviderRefused, TaskNotFound, TaskRefused
from submitter.images import json_request, multipart_request
from submitter.parsing import Unreadable
from submitter.provider import Provider, ProviderOptions, Rhythm, busy_seconds, json_answer, refusal, unreadable
from submitter.provider_settings import Rate
from submitter.vocabulary import Exchange, Failure, Image, Picture, Report, State, Task

MAX_BYTES = 100 * 1024 * 1024
_STATES = {
    "enhancing": State.RUNNING,
    "processing": State.RUNNING,
    "pending": State.RUNNING,
    "processed": State.SUCCEEDED,
    "completed": State.SUCCEEDED,
    "processing_failed": State.FAILED,
    "failed": State.FAILED,
}
_LINKS = ("downloadLink", "downloadUrl", "signedUrl", "presignedUrl", "url", "fileUrl")
"""Never `path`: it is a place in their storage, and every address built from it in the wild is a guess."""
_MANAGED = ("file", "files", "urls")
_ACCOUNT_CODES = ("UNAUTHORIZED", "INSUFFICIENT_CREDITS")


class UpscaylOptions(ProviderOptions):
    enhanceFace: bool = Field(default=False, description="Whether to enhance faces.")
    model: Literal[
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
    ] = Field(default="upscayl-standard-4x", description="The model.")
    scale: int = Field(default=4, ge=1, le=8, description="How many times larger, 1 to 8.")
    saveImageAs: Literal["jpg", "png", "webp"] = Field(default="jpg", description="Format of the result.")

    required_by_provider: ClassVar[tuple[str, ...]] = ("enhanceFace", "model", "scale", "saveImageAs")


class Upscayl(Provider):
    name = "upscayl"
    title = "Upscayl Cloud"
    default_base_url = "https://api.upscayl.org"
    callbacks = False
    pollable = True
    trust = None
    Options = UpscaylOptions
    rates: ClassVar[tuple[Rate, ...]] = (Rate(50, 3600),)
    poll_rates: ClassVar[tuple[Rate, ...]] = (Rate(100, 3600),)
    rhythm = Rhythm(first=10, interval=10, growth=1.5, cap=60)
    max_input_bytes = MAX_BYTES

    def check(self, picture: Picture, options: ProviderOptions) -> None:
        if picture.content_type not in ("image/jpeg", "image/png", "image/webp"):
            raise TaskRefused(
                f"Upscayl takes JPG, PNG and WEBP, not {picture.content_type}", field="image", code="unsupported_format"
            )
        if picture.size > MAX_BYTES:
            raise TaskRefused("Upscayl takes files up to 100 MB", field="image", code="file_too_large")

    def submit(self, task: Task, callback_url: str | None) -> Exchange[Report]:
        fields = {**task.options, **task.passthrough}
        form = {
            name: parsing.form_text(value)
            for name, value in fields.items()
            if value is not None and name not in _MANAGED
        }
        picture = task.picture if task.picture.path is not None else None
        if picture is None:
            form["urls"] = task.picture.url or ""
        answer = yield multipart_request(
            f"{self.base_url}/start-task", self._headers(), form, picture=picture, part="file"
        )
        with parsing.hiding(task.picture.url):
            return self.submitted(answer)

    def submitted(self, response: httpx.Response) -> Report:
        if not response.is_success:
            raise self._refused(response)
        body = json_answer(response)
        try:
            data = parsing.mapping(parsing.mapping(body, "the body").get("data"), "data")
            remote_id = parsing.identifier(data.get("taskId"), "taskId")
        except Unreadable as exc:
            raise self._denied(response, body) or unreadable(exc, response, body, self.api_key) from exc
        header = response.headers.get("x-task-cost")
        cost = parsing.cost(header, "credits") or parsing.cost(data.get("creditsToDeduct"), "credits")
        return Report(remote_id, State.RUNNING, cost=cost)

    def poll(self, remote_id: str) -> Exchange[Report]:
        body = {"data": {"taskId": remote_id}}
        answer = yield json_request("POST", f"{self.base_url}/get-task-status", self._headers(), body)
        report = self.polled(answer)
        return report if report.remote_id is not None else replace(report, remote_id=remote_id)

    def polled(self, response: httpx.Response) -> Report:
        """Read a status answer. If it does not name the task, `remote_id` is None, and it is about the polled task."""
        if not response.is_success:
            error = self._refused(response)
            raise TaskNotFound(str(error), code=error.code) if response.status_code == 404 else error
        body = json_answer(response)
        try:
            whole = parsing.mapping(body, "the body")
            unwrapped = "data" not in whole and str(whole.get("status")).lower() in _STATES and "error" not in whole
            return self._report(whole if unwrapped else parsing.mapping(whole.get("data"), "data"))
        except Unreadable as exc:
            raise self._denied(response, body) or unreadable(exc, response, body, self.api_key) from exc

    def _headers(self) -> dict[str, str]:
        return {"X-API-Key": self.api_key}

    def _report(self, data: Mapping[str, Any]) -> Report:
        status = parsing.word(data.get("status"), "data.status")
        remote_id = parsing.identifier(data["taskId"], "taskId") if data.get("taskId") is not None else None
        cost = parsing.cost(data.get("deductedCredits"), "credits")
        files = parsing.items(data.get("files"), "files")
        state = _STATES.get(status.lower(), State.RUNNING)
        if state is State.SUCCEEDED:
            images = [image for file in files if (image := self._image(file))]
            return parsing.done(remote_id, images, [data, *files], remote_status=status, cost=cost)
        error = self._failure(data) if state is State.FAILED else None
        return Report(remote_id, state, error=error, cost=cost, remote_status=status)

    def _image(self, file: Any) -> Image | None:
        expires_at = parsing.moment(file.get("expiresAt")) if isinstance(file, dict) else None
        return parsing.result(file, *_LINKS, base_url=self.base_url, expires_at=expires_at)

    def _failure(self, data: Mapping[str, Any]) -> Failure:
        reason = data.get("error")
        code = parsing.first_text(reason, "code") if isinstance(reason, dict) else None
        message = parsing.sentence(parsing.words(reason) or code, self.api_key)
        return Failure("failed", message or "Upscayl reports that the task failed and gives no reason", permanent=False)

    def _refused(self, response: httpx.Response) -> ProviderError:
        said = parsing.error_body(response)
        code, message = self._words(said)
        is_json = "json" in response.headers.get("content-type", "").lower()
        if code in _ACCOUNT_CODES:
            return AccountRefused(message or code, code=code)
        return parsing.redirected(response) or refusal(
            response,
            code=code,
            message=message,
            permanent=parsing.permanent_status(response.status_code),
            own_shape=is_json and message is not None,
        )

    def _denied(self, response: httpx.Response, body: Any) -> ProviderError | None:
        """Return the refusal in an answer with HTTP 200; None if the body is not a refusal."""
        if not isinstance(body, dict) or isinstance(body.get("data"), dict):
            return None
        status = body.get("status")
        code, message = self._words(body)
        if code is None and not (isinstance(status, str) and status.lower() in ("error", "fail", "failed")):
            return None
        said = message or "Upscayl refused the call without a reason"
        if code in _ACCOUNT_CODES:
            return AccountRefused(said, code=code)
        if code == "RATE_LIMIT_EXCEEDED":
            return ProviderBusy(said, code=code, retry_after_seconds=busy_seconds(response))
        return ProviderRefused(said, code=code or "error", permanent=code != "INTERNAL_SERVER_ERROR")

    def _words(self, said: dict[str, Any] | str | None) -> tuple[str | None, str | None]:
        """Return code and message of an error; an `error` in capitals is a code, any other a message."""
        if not isinstance(said, dict):
            return None, parsing.sentence(said, self.api_key)
        error = parsing.first_text(said, "error")
        is_code = error is not None and error.isascii() and error.replace("_", "").isupper() and len(error) <= 100
        message = parsing.words(said)
        return error if is_code else None, parsing.sentence(message, self.api_key)
