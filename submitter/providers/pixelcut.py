"""
Pixelcut (Pixa) upscale.

Written from these pages, read 2026-11:
- https://www.pixelcut.ai/docs/api-reference/endpoints/upscale
- https://www.pixelcut.ai/docs/developer-guide/core-concepts/rate-limits, /credits and /result-urls

Quirks: synchronous, with no task id, no status call and no callbacks: the answer to the submit call is the result, and
an answer that is lost can't be asked for again. Errors are JSON whatever was asked for. "Out of credits" is a 403. The
vendor advises to send again after 429 and 5xx, and describes no body for a 500.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import httpx
from pydantic import BeforeValidator, Field

from submitter import parsing
from submitter.errors import AnswerLost, ProviderBusy, ProviderError, ProviderRefused, TaskRefused
from submitter.image_files import MemoryBytes, NotAnImage, magic_type, measure
from submitter.images import json_request, multipart_request
from submitter.parsing import Unreadable
from submitter.provider import (
    Provider,
    ProviderOptions,
    busy_seconds,
    json_answer,
    refusal,
    unreadable,
    whole_number,
)
from submitter.provider_settings import PricedSettings, Rate
from submitter.vocabulary import Cost, Exchange, Image, Picture, Report, State, Task

MIN_SIDE = 64
MAX_SIDE = 6000
MAX_BYTES = 25 * 1024 * 1024
LINK_SECONDS = 3600
_MANAGED = ("image", "image_url")
_RESULTS = ("result_url", "url", "image", "image_base64", "result", "output", "data", "images", "results")
"""Where else a result may be, as a link or written out: an answer that was paid for can't be asked for again."""


class PixelcutOptions(ProviderOptions):
    scale: Annotated[Literal[2, 4], BeforeValidator(whole_number)] = Field(
        default=2, description="How many times larger, 2 or 4. No side of the result may be longer than 6000 pixels."
    )

    required_by_provider: ClassVar[tuple[str, ...]] = ("scale",)


class Pixelcut(Provider):
    name = "pixelcut"
    title = "Pixelcut"
    default_base_url = "https://api.developer.pixelcut.ai"
    callbacks = False
    pollable = False
    trust = None
    Options = PixelcutOptions
    Settings = PricedSettings
    rates: ClassVar[tuple[Rate, ...]] = (Rate(5, 1),)
    concurrency = 5
    submit_timeout_seconds = 180.0
    max_input_bytes = MAX_BYTES

    def __init__(self, *, api_key: str, base_url: str | None = None, price: Cost | None = None) -> None:
        super().__init__(api_key=api_key, base_url=base_url)
        self.price = price

    def check(self, picture: Picture, options: ProviderOptions) -> None:
        size = f"{picture.width}x{picture.height}"
        if picture.size > MAX_BYTES:
            raise TaskRefused("Pixelcut takes files up to 25 MB", field="image", code="file_too_large")
        if 0 < min(picture.width, picture.height) < MIN_SIDE:
            raise TaskRefused(
                f"Pixelcut takes images from {MIN_SIDE}x{MIN_SIDE}, this one is {size}",
                field="image",
                code="image_too_small",
            )
        longest = max(picture.width, picture.height)
        if longest > MAX_SIDE:
            raise TaskRefused(
                f"Pixelcut takes images up to {MAX_SIDE}x{MAX_SIDE}, this one is {size}",
                field="image",
                code="image_too_large",
            )
        scale = options.to_send()["scale"]
        if longest * scale > MAX_SIDE:
            raise TaskRefused(
                f"{size} times {scale} is more than the {MAX_SIDE}x{MAX_SIDE} that a result may have; "
                "choose a smaller scale or a smaller image",
                field="options.scale",
                code="output_too_large",
            )

    def submit(self, task: Task, callback_url: str | None) -> Exchange[Report]:
        url = f"{self.base_url}/v1/upscale"
        headers = {"X-API-KEY": self.api_key, "Accept": "application/json"}
        fields: dict[str, Any] = {**task.options, **task.passthrough}
        for name in _MANAGED:
            fields.pop(name, None)
        if task.picture.path is None:
            answer = yield json_request("POST", url, headers, {"image_url": task.picture.url, **fields})
        else:
            form = {name: parsing.form_text(value) for name, value in fields.items() if value is not None}
            answer = yield multipart_request(url, headers, form, picture=task.picture, part="image")
        with parsing.hiding(task.picture.url):
            return self.submitted(answer)

    def check_key(self) -> Exchange[None]:
        """Ask for the balance: there is no status call."""
        headers = {"X-API-KEY": self.api_key, "Accept": "application/json"}
        answer = yield httpx.Request("GET", f"{self.base_url}/v1/credits", headers=headers)
        if not answer.is_success:
            raise self._refused(answer)

    def submitted(self, response: httpx.Response) -> Report:
        if not response.is_success:
            raise self._refused(response)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        content_type = magic_type(response.content)
        if content_type:
            return Report(None, State.SUCCEEDED, (_image(response.content),), cost=self.price)
        if kind.startswith("image/"):
            raise AnswerLost(
                f"Pixelcut answered {response.status_code} with {kind} that is none", code="unreadable_answer"
            )
        body = json_answer(response)
        expires_at = parsing.after(parsing.answered_at(response), LINK_SECONDS)
        answered = body if isinstance(body, dict) else {}
        find = partial(parsing.result, base_url=self.base_url, expires_at=expires_at)
        image = find(answered, "result_url")
        code, message = self._words(answered)
        if image is None and code is None:
            image = next(filter(None, (find(item, *_RESULTS) for item in _candidates(answered))), None)
        if image is not None:
            return Report(None, State.SUCCEEDED, (image,), cost=self.price)
        if code is not None:
            raise ProviderRefused(message or code, code=code)
        lacking = Unreadable(f"it has no usable result_url; keys seen: {parsing.keys_of(body)}", code=parsing.NO_RESULT)
        raise unreadable(lacking, response, body, self.api_key)

    def _refused(self, response: httpx.Response) -> ProviderError:
        said = parsing.error_body(response)
        code, message = self._words(said)
        if response.status_code == 500:
            return ProviderBusy(
                message or "Pixelcut answered HTTP 500",
                code=code or "http_500",
                retry_after_seconds=busy_seconds(response),
                tries=5,
            )
        return parsing.redirected(response) or refusal(
            response,
            code=code,
            message=message,
            permanent=parsing.permanent_status(response.status_code),
            own_shape=code is not None,
        )

    def _words(self, said: dict[str, Any] | str | None) -> tuple[str | None, str | None]:
        if not isinstance(said, dict):
            return None, parsing.sentence(said, self.api_key)
        code = parsing.sentence(parsing.first_text(said, "error_code"), self.api_key)
        message = parsing.sentence(parsing.words(said), self.api_key)
        return code[:100] if code else None, message or code


def _candidates(body: dict[str, Any]) -> list[Any]:
    """Return what the fields hold that may name a result: texts, objects, and items of lists."""
    values = [body.get(name) for name in _RESULTS]
    return [item for value in values for item in (value[:1] if isinstance(value, list) else [value])]


def _image(data: bytes) -> Image:
    """Return an image that is the answer itself. An incomplete image is a lost answer: paid for and not fetchable."""
    try:
        measured = measure(MemoryBytes(data))
    except NotAnImage as exc:
        raise AnswerLost(f"Pixelcut answered with an image that is not whole: {exc}", code="answer_cut") from exc
    return Image(data=data, content_type=measured.content_type)
