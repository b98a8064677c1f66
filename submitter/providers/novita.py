"""
Novita upscale (v3, asynchronous).

Written from these pages, read 2026-11:
- https://novita.ai/docs/api-reference/model-apis-upscale
- https://novita.ai/docs/api-reference/model-apis-task-result and /model-apis-webhook
- https://novita.ai/docs/api-reference/basic-error-code and https://novita.ai/docs/guides/model-apis-rate-limits

Quirks: the success word is TASK_STATUS_SUCCEED. Callbacks put the task result under `payload`, are not signed, carry
the final state only and echo the callback URL, token included; they need an answer within 5 s and are repeated up to
five times. Account errors come as HTTP 400 and 403. `image_url_ttl` is a text or a number. The page says
`imgs`, the field is `images`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlencode

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from submitter import parsing
from submitter.errors import AccountRefused, ProviderError, TaskNotFound, TaskRefused
from submitter.images import json_request, plain_request
from submitter.parsing import Unreadable
from submitter.provider import (
    Provider,
    ProviderOptions,
    Rhythm,
    json_answer,
    json_body,
    refusal,
    unreadable,
    whole_number,
)
from submitter.provider_settings import PricedSettings, Rate
from submitter.vocabulary import Callback, Cost, Exchange, Failure, Image, Picture, Report, State, Task, Trust

MAX_SIDE = 2048
MAX_BYTES = 30 * 1024 * 1024
_STATES = {
    "TASK_STATUS_QUEUED": State.RUNNING,
    "TASK_STATUS_PROCESSING": State.RUNNING,
    "TASK_STATUS_SUCCEED": State.SUCCEEDED,
    "TASK_STATUS_SUCCEEDED": State.SUCCEEDED,
    "TASK_STATUS_FAILED": State.FAILED,
}
_ACCOUNT_REASONS = frozenset(
    {"BILLING_BALANCE_NOT_ENOUGH", "BILLING_AUTH_FAILED", "MISSING_API_KEY", "INVALID_API_KEY"}
)
_REQUEST_FIELDS = ("model_name", "scale_factor")


class _Nested(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AwsS3(_Nested):
    region: str = Field(description="AWS region.")
    bucket: str = Field(description="Bucket name.")
    path: str = Field(description="Path in the bucket for the results.")
    save_to_path_directly: bool | None = Field(
        default=None, description="Save into the path itself, without further directories; false if not given."
    )


class CustomStorage(_Nested):
    aws_s3: AwsS3 | None = Field(default=None, description="An S3 bucket of your own.")


class EnterprisePlan(_Nested):
    enabled: bool | None = Field(default=None, description="Use dedicated endpoints; false if not given.")


class NovitaOptions(ProviderOptions):
    model_name: Literal["RealESRGAN_x4plus_anime_6B", "RealESRNet_x4plus", "4x-UltraSharp"] = Field(
        default="RealESRGAN_x4plus_anime_6B", description="The upscaler."
    )
    scale_factor: int | float = Field(default=2, gt=1, le=4, description="How many times larger: above 1, up to 4.")
    response_image_type: Literal["png", "webp", "jpeg"] | None = Field(
        default=None, description="Format of the result; png if not given."
    )
    custom_storage: CustomStorage | None = Field(
        default=None, description="Where results are saved; Novita's own temporary storage if not given."
    )
    enterprise_plan: EnterprisePlan | None = Field(default=None, description="Dedicated endpoints, for subscribers.")
    enable_nsfw_detection: bool | None = Field(
        default=None, description="Detect unsafe content, for 0.0015 USD more per image."
    )
    nsfw_detection_level: Annotated[Literal[0, 1, 2] | None, BeforeValidator(whole_number)] = Field(
        default=None,
        description="0: explicit nudity, sexual activity, hate symbols. 1: also non-explicit nudity and kissing. "
        "2: also swimwear and underwear.",
    )

    required_by_provider: ClassVar[tuple[str, ...]] = _REQUEST_FIELDS


class Novita(Provider):
    name = "novita"
    title = "Novita"
    default_base_url = "https://api.novita.ai"
    callbacks = True
    pollable = True
    trust = Trust.CAPABILITY_TOKEN
    Options = NovitaOptions
    Settings = PricedSettings
    rates: ClassVar[tuple[Rate, ...]] = (Rate(20, 60),)
    rhythm = Rhythm(first=5, interval=5)
    callback_timeout_seconds = 5.0
    max_input_bytes = MAX_BYTES

    def __init__(self, *, api_key: str, base_url: str | None = None, price: Cost | None = None) -> None:
        super().__init__(api_key=api_key, base_url=base_url)
        self.price = price

    @classmethod
    def options_for_scale(cls, scale: int) -> dict[str, Any]:
        return {"scale_factor": scale}

    def check(self, picture: Picture, options: ProviderOptions) -> None:
        if picture.size > MAX_BYTES:
            raise TaskRefused("Novita takes files up to 30 MB", field="image", code="file_too_large")
        if picture.width > MAX_SIDE or picture.height > MAX_SIDE:
            raise TaskRefused(
                f"Novita takes images up to {MAX_SIDE}x{MAX_SIDE}, this one is {picture.width}x{picture.height}",
                field="image",
                code="image_too_large",
            )

    def submit(self, task: Task, callback_url: str | None) -> Exchange[Report]:
        answer = yield json_request(
            "POST",
            f"{self.base_url}/v3/async/upscale",
            self._headers(),
            _body(task, callback_url),
            picture=task.picture,
            at=("request", "image_base64"),
        )
        with parsing.hiding(callback_url):
            return self.submitted(answer)

    def submitted(self, response: httpx.Response) -> Report:
        if not response.is_success:
            raise self._refused(response)
        body = json_answer(response)
        try:
            remote_id = parsing.identifier(parsing.mapping(body, "the body").get("task_id"), "task_id")
        except Unreadable as exc:
            raise self._denied(exc, response, body) from exc
        return Report(remote_id, State.RUNNING, cost=self.price)

    def poll(self, remote_id: str) -> Exchange[Report]:
        query = urlencode({"task_id": remote_id})
        answer = yield plain_request("GET", f"{self.base_url}/v3/async/task-result?{query}", self._headers())
        return self.polled(answer)

    def polled(self, response: httpx.Response) -> Report:
        if not response.is_success:
            error = self._refused(response)
            unknown = error.code == "TASK_NOT_FOUND" or response.status_code == 404
            raise TaskNotFound(str(error), code=error.code) if unknown else error
        body = json_answer(response)
        try:
            return self._report(body, parsing.answered_at(response))
        except Unreadable as exc:
            raise self._denied(exc, response, body) from exc

    def read(self, callback: Callback) -> Report | None:
        try:
            body = parsing.mapping(json_body(callback), "the body")
            if "event_type" in body and parsing.word(body["event_type"], "event_type") != "ASYNC_TASK_RESULT":
                return None
            return self._report(body.get("payload", body), callback.received_at)
        except Unreadable as exc:
            raise exc.as_callback() from exc

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def _refused(self, response: httpx.Response) -> ProviderError:
        said = parsing.error_body(response)
        reason = message = None
        if isinstance(said, dict):
            reason = parsing.sentence(parsing.first_text(said, "reason"), self.api_key)
            message = parsing.sentence(parsing.words(said), self.api_key)
        else:
            message = parsing.sentence(said, self.api_key)
        code = reason[:100] if reason else None
        if reason in _ACCOUNT_REASONS and response.status_code < 500:
            return AccountRefused(message or reason, code=reason)
        return parsing.redirected(response) or refusal(
            response,
            code=code,
            message=message or reason,
            permanent=parsing.permanent_status(response.status_code),
            own_shape=isinstance(said, dict) and bool(reason or message),
        )

    def _denied(self, exc: Unreadable, response: httpx.Response, body: Any) -> ProviderError:
        error = unreadable(exc, response, body, self.api_key)
        return AccountRefused(str(error), code=error.code) if error.code in _ACCOUNT_REASONS else error

    def _report(self, body: Any, answered_at: datetime | None) -> Report:
        result = parsing.mapping(body, "the task result")
        return replace(self._said(result, answered_at), callback_url=_echoed_url(result))

    def _said(self, result: Mapping[str, Any], answered_at: datetime | None) -> Report:
        task = parsing.mapping(result.get("task"), "task")
        remote_id = parsing.identifier(task.get("task_id"), "task_id")
        status = parsing.word(task.get("status"), "status")
        listed = parsing.items(result.get("images"), "images")
        state = _STATES.get(status.upper(), State.RUNNING)
        if state is State.SUCCEEDED:
            images = [image for item in listed if (image := self._image(item, answered_at))]
            return parsing.done(remote_id, images, [result, *listed], remote_status=status, cost=self.price)
        error = self._failure(task) if state is State.FAILED else None
        return Report(remote_id, state, error=error, cost=self.price, remote_status=status)

    def _image(self, item: Any, answered_at: datetime | None) -> Image | None:
        image = parsing.result(item, "image_url", "url", base_url=self.base_url)
        if image is None or image.url is None:
            return image
        known = item if isinstance(item, dict) else {}
        kind = known.get("image_type")
        return replace(
            image,
            expires_at=parsing.presigned_until(image.url) or parsing.after(answered_at, known.get("image_url_ttl")),
            content_type=f"image/{kind}" if kind in ("png", "webp", "jpeg") else None,
        )

    def _failure(self, task: Mapping[str, Any]) -> Failure:
        reason = parsing.sentence(parsing.words(task.get("reason")), self.api_key)
        named = reason is not None and re.fullmatch(r"[A-Z][A-Z0-9_]{2,99}", reason) is not None
        return Failure(
            code=reason if reason and named else "failed",
            message=reason or "Novita reports that the task failed and gives no reason",
            permanent=reason is not None and reason.startswith(("INVALID_", "ILLEGAL_", "IMAGE_")),
        )


def _body(task: Task, callback_url: str | None) -> dict[str, Any]:
    request = {name: value for name, value in task.options.items() if name in _REQUEST_FIELDS}
    extra = {name: value for name, value in task.options.items() if name not in _REQUEST_FIELDS}
    body = parsing.merged({"request": request, "extra": extra}, task.passthrough)
    webhook = body["extra"].pop("webhook", None)
    if callback_url is not None:
        body["extra"]["webhook"] = {**(webhook if isinstance(webhook, dict) else {}), "url": callback_url}
    if not body["extra"]:
        del body["extra"]
    return body


def _echoed_url(result: Mapping[str, Any]) -> str | None:
    """Return the callback URL of the task. Lenient: a paid answer is not given up for this."""
    found: Any = result
    for name in ("extra", "webhook", "url"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) and found else None
