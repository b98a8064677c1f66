"""
APIXO image-upscaler.

Written from these pages, read 2026-11:
- https://apixo.ai/docs/models/image-upscaler
- https://apixo.ai/docs/api-reference/status-task, /webhooks, /errors, /response-format
- https://apixo.ai/docs/guides/polling-vs-webhooks

Quirks: three levels to read: the HTTP status, the envelope's `code` (of the call), the task's `state`; HTTP 200 with
code 200 and state `failed` is normal. `resultJson` is JSON in a string. The input must be a public URL. Callbacks are
not signed, carry the final state only, and are repeated after 30 s, 2 min and 10 min unless answered 200 within 30 s.
Which codes a failed task may carry is an open set. HTTP 500 says to send again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import urlencode

import httpx
from pydantic import Field, field_validator

from submitter import parsing
from submitter.errors import (
    AccountRefused,
    AnswerLost,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    TaskNotFound,
    TaskRefused,
)
from submitter.images import json_request, plain_request
from submitter.parsing import Unreadable
from submitter.provider import (
    Provider,
    ProviderOptions,
    Rhythm,
    busy_seconds,
    json_answer,
    json_body,
    refusal,
    unreadable,
)
from submitter.vocabulary import Callback, Cost, Exchange, Failure, Image, Picture, Report, State, Task, Trust

PRICE = Cost(Decimal("0.01"), "USD")
_STATES = {
    "pending": State.RUNNING,
    "processing": State.RUNNING,
    "success": State.SUCCEEDED,
    "failed": State.FAILED,
}
_PERMANENT_FAILURES = frozenset(
    {
        "ImageFormatIncorrect",
        "SensitiveContent",
        "SensitiveContentDetected",
        "InputImageSensitiveContentDetected",
        "ProhibitedContentDetected",
        "NSFW",
        "CONTENT_VIOLATION",
        "INVALID_IMAGE_URL",
        "IMAGE_TOO_LARGE",
        "UNSUPPORTED_FORMAT",
    }
)


class ApixoOptions(ProviderOptions):
    request_type: Literal["async", "callback"] | None = Field(
        default=None,
        description="How the result is delivered: polled or called back. If not given, called back where possible.",
    )
    mode: Literal["image-to-image"] | None = Field(default=None, description="The only mode there is.")
    resolution: Literal["2k", "4k", "8k"] | None = Field(
        default=None, description="Size of the result, in any case; 4k if not given."
    )
    output_format: Literal["jpg", "png", "webp"] | None = Field(
        default=None, description="Format of the result; jpg if not given, jpeg means jpg."
    )

    @field_validator("resolution", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("output_format", mode="before")
    @classmethod
    def _alias(cls, value: Any) -> Any:
        return "jpg" if value == "jpeg" else value


class Apixo(Provider):
    name = "apixo"
    title = "APIXO"
    default_base_url = "https://api.apixo.ai/api/v1"
    callbacks = True
    pollable = True
    trust = Trust.CAPABILITY_TOKEN
    wants_url = True
    Options = ApixoOptions
    rhythm = Rhythm(first=12, interval=7)
    callback_timeout_seconds = 30.0

    @classmethod
    def options_for_scale(cls, scale: int) -> dict[str, Any]:
        raise TaskRefused(
            "APIXO has a resolution in place of a scale; leave out the scale, or set resolution",
            field="options.resolution",
            code="no_scale",
        )

    def check(self, picture: Picture, options: ProviderOptions) -> None:
        if picture.content_type not in ("image/jpeg", "image/png", "image/webp"):
            raise TaskRefused(
                f"APIXO takes JPG, PNG and WEBP, not {picture.content_type}", field="image", code="unsupported_format"
            )

    def options_for_callback(self, options: Mapping[str, Any]) -> bool:
        return options.get("request_type") != "async"

    def callback_option(self, options: ProviderOptions) -> str | None:
        return "request_type" if options.to_send().get("request_type") == "callback" else None

    def submit(self, task: Task, callback_url: str | None) -> Exchange[Report]:
        answer = yield self._submission(task, callback_url)
        with parsing.hiding(callback_url, task.picture.url):
            return self.submitted(answer)

    def submitted(self, response: httpx.Response) -> Report:
        body = self._accepted(response)
        try:
            data = parsing.mapping(body.get("data"), "data")
            remote_id = parsing.identifier(data.get("taskId"), "taskId")
        except Unreadable as exc:
            raise unreadable(exc, response, body, self.api_key) from exc
        return Report(remote_id, State.RUNNING, cost=PRICE)

    def poll(self, remote_id: str) -> Exchange[Report]:
        query = urlencode({"taskId": remote_id})
        answer = yield plain_request("GET", f"{self.base_url}/statusTask/image-upscaler?{query}", self._headers())
        return self.polled(answer)

    def polled(self, response: httpx.Response) -> Report:
        body = self._accepted(response, asking=True)
        try:
            return self._report(body)
        except Unreadable as exc:
            raise unreadable(exc, response, body, self.api_key) from exc

    def read(self, callback: Callback) -> Report | None:
        try:
            return self._report(parsing.mapping(json_body(callback), "the body"))
        except Unreadable as exc:
            raise exc.as_callback() from exc

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"}

    def _submission(self, task: Task, callback_url: str | None) -> httpx.Request:
        if task.picture.url is None:
            raise TaskRefused(
                "APIXO takes images by public URL only; set RECEIVER_PUBLIC_URL so that the image can be hosted, "
                "or give the image as a URL",
                field="image",
                code="public_url_required",
            )
        options = dict(task.options)
        wish = options.pop("request_type", None)
        if wish == "callback" and callback_url is None:
            raise TaskRefused(
                "request_type callback needs a callback URL; set RECEIVER_PUBLIC_URL or choose async",
                field="options.request_type",
                code="public_url_required",
            )
        body = parsing.merged({"input": options}, task.passthrough)
        body["input"]["image_urls"] = [task.picture.url]
        body.pop("callback_url", None)
        if callback_url is not None and wish != "async":
            body |= {"request_type": "callback", "callback_url": callback_url}
        else:
            body["request_type"] = "async"
        return json_request("POST", f"{self.base_url}/generateTask/image-upscaler", self._headers(), body)

    def _accepted(self, response: httpx.Response, *, asking: bool = False) -> Mapping[str, Any]:
        """Return the envelope of an answer that is a success on both levels, HTTP and `code`."""
        if response.is_success:
            body = json_answer(response)
            if not isinstance(body, dict):
                raise Unreadable("the body is not an object").as_answer()
            code = _code(body)
            if code is None and not isinstance(body.get("data"), dict):
                raise unreadable(Unreadable("code is missing"), response, body, self.api_key)
            if code in (None, 200):
                return body
            raise self._refused(response, code, body, asking=asking)
        said = parsing.error_body(response)
        body = said if isinstance(said, dict) else {}
        code = _code(body)
        status = response.status_code
        # A 4xx may carry the account's errors in the envelope only; nothing else in it outranks the HTTP status.
        decisive = code if code in (401, 402, 403, 429) and 400 <= status < 500 else status
        raise parsing.redirected(response) or self._refused(
            response, decisive, body or {"message": said}, asking=asking, own_shape=code is not None
        )

    def _refused(
        self, response: httpx.Response, status: int, body: Mapping[str, Any], *, asking: bool, own_shape: bool = True
    ) -> ProviderError:
        data = body.get("data")
        parts = [parsing.words(body)]
        parts += [parsing.first_text(data, "error", "message")] if isinstance(data, dict) else []
        said = parsing.sentence("; ".join(dict.fromkeys(part for part in parts if part)), self.api_key)
        message = said or f"APIXO answered code {status} without a message"
        code = str(status) if own_shape else f"http_{status}"
        if status == 404 and asking:
            return TaskNotFound(message, code=code)
        if status in (429, 503):
            return ProviderBusy(message, code=code, retry_after_seconds=busy_seconds(response))
        if status == 500 and own_shape:
            return ProviderBusy(message, code=code, retry_after_seconds=busy_seconds(response), tries=5)
        if status in (401, 402, 403):
            return AccountRefused(message, code=code)
        if status in (502, 504):
            return AnswerLost(message, code=code)
        if response.is_success:
            return ProviderRefused(message, code=code, permanent=parsing.permanent_status(status))
        permanent = parsing.permanent_status(status)
        return refusal(response, code=code, message=message, permanent=permanent, own_shape=own_shape)

    def _report(self, body: Mapping[str, Any]) -> Report:
        data = parsing.mapping(body["data"], "data") if body.get("data") is not None else body
        remote_id = parsing.identifier(data.get("taskId"), "taskId")
        status = parsing.word(data.get("state"), "state")
        state = _STATES.get(status.lower(), State.RUNNING)
        if state is State.SUCCEEDED:
            return parsing.done(remote_id, self._images(data), data, remote_status=status, cost=PRICE)
        error = self._failure(data) if state is State.FAILED else None
        return Report(remote_id, state, error=error, cost=PRICE, remote_status=status)

    def _images(self, data: Mapping[str, Any]) -> list[Image]:
        result = data.get("resultJson")
        if isinstance(result, str):
            try:
                result = json.loads(result.removeprefix("\ufeff"))
            except (ValueError, RecursionError):
                result = {}
        urls = parsing.items(result.get("resultUrls"), "resultUrls") if isinstance(result, dict) else []
        completed_at = parsing.moment(data.get("completeTime"))
        expires_at = completed_at + timedelta(hours=24) if completed_at else None
        images = (parsing.result(item, "url", base_url=self.base_url, expires_at=expires_at) for item in urls)
        return [image for image in images if image is not None]

    def _failure(self, data: Mapping[str, Any]) -> Failure:
        code, message = (
            parsing.sentence(str(value), self.api_key) if isinstance(value, str | int) and value else None
            for value in (data.get("failCode"), data.get("failMsg"))
        )
        return Failure(
            code=(code or "failed")[:100],
            message=message or code or "APIXO reports that the task failed and gives no reason",
            permanent=code in _PERMANENT_FAILURES,
        )


def _code(body: Mapping[str, Any]) -> int | None:
    number = parsing.number(body.get("code"))
    return int(number) if number is not None and 100 <= number < 10**6 and number == int(number) else None
