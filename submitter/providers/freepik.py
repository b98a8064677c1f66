"""
Freepik (Magnific) image upscaler, creative.

Written from these pages, read 2026-11:
- https://docs.freepik.com/api-reference/image-upscaler-creative/post-image-upscaler
- https://docs.freepik.com/api-reference/image-upscaler-creative/get-image-upscaler
- https://docs.freepik.com/webhooks and https://docs.freepik.com/ratelimits
- https://docs.magnific.com/api-reference/creations/overview for the renamed host and key header

Quirks: status answers wrap the task in `data`, callbacks do not, older pages wrap nothing and say `task_status`. It
calls back at every change of state. A failed task carries no reason. Its signature looks like Standard Webhooks, but
the key is the secret's text itself (the page's PHP sample decodes base64: hence `secret_encoding`), and the version tag
is the secret's. No retry policy, timeout or lifetime of links is documented; real links carry `exp=<unix>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar, Literal
from urllib.parse import quote, urlsplit

import httpx
from pydantic import Field

from submitter import parsing
from submitter.errors import ProviderError, TaskNotFound, TaskRefused
from submitter.images import json_request, plain_request
from submitter.parsing import Unreadable
from submitter.provider import Provider, ProviderOptions, Rhythm, json_answer, json_body, refusal, unreadable
from submitter.provider_settings import PricedSettings, Rate, Secrets, SettingsWarning
from submitter.signatures import Encoding, parse_key, verify_callback
from submitter.vocabulary import Callback, Cost, Exchange, Failure, Image, Picture, Report, State, Task, Trust

MAX_OUTPUT_PIXELS = 25_300_000
_VERSIONS = re.compile(rb"v[0-9]{1,4}")
_STATES = {
    "CREATED": State.RUNNING,
    "IN_PROGRESS": State.RUNNING,
    "COMPLETED": State.SUCCEEDED,
    "FAILED": State.FAILED,
}
_STRENGTH = "{} Valid values range from -10 to 10; 0 if not given."


def _strength(what: str) -> Any:
    return Field(default=None, ge=-10, le=10, description=_STRENGTH.format(what))


class FreepikOptions(ProviderOptions):
    scale_factor: Literal["2x", "4x", "8x", "16x"] | None = Field(
        default=None,
        description="How many times larger the result is; 2x if not given. The result may have 25.3 million pixels.",
    )
    optimized_for: (
        Literal[
            "standard",
            "soft_portraits",
            "hard_portraits",
            "art_n_illustration",
            "videogame_assets",
            "nature_n_landscapes",
            "films_n_photography",
            "3d_renders",
            "science_fiction_n_horror",
        ]
        | None
    ) = Field(default=None, description="Style that the upscale is optimised for; standard if not given.")
    prompt: str | None = Field(
        default=None, description="Guides the upscale; for generated images, reuse the prompt that made them."
    )
    creativity: int | None = _strength("How creative the model is.")
    hdr: int | None = _strength("Level of definition and detail.")
    resemblance: int | None = _strength("Resemblance to the original image.")
    fractality: int | None = _strength("Strength of the prompt and intricacy per square pixel.")
    engine: Literal["automatic", "magnific_illusio", "magnific_sharpy", "magnific_sparkle"] | None = Field(
        default=None, description="Magnific engine; automatic if not given."
    )
    filter_nsfw: bool | None = Field(default=None, description="Filter unsafe results; false if not given.")


class FreepikSettings(PricedSettings):
    webhook_secret: Secrets = Field((), description="Comma-separated for rotation.")
    webhook_secret_encoding: Encoding = Field("utf8", description="How the secret becomes a key.")
    api_key_header: str = Field("x-freepik-api-key", description="Name of the header that carries the key.")

    def constructor_arguments(self) -> dict[str, Any]:
        return {
            **super().constructor_arguments(),
            "webhook_secrets": [secret.get_secret_value() for secret in self.webhook_secret],
            "secret_encoding": self.webhook_secret_encoding,
            "api_key_header": self.api_key_header,
        }


class Freepik(Provider):
    name = "freepik"
    title = "Freepik (Magnific)"
    default_base_url = "https://api.freepik.com"
    callbacks = True
    pollable = True
    Options = FreepikOptions
    Settings = FreepikSettings
    rates: ClassVar[tuple[Rate, ...]] = (Rate(250, 5), Rate(1200, 120))
    poll_rates: ClassVar[tuple[Rate, ...]] = (Rate(250, 5), Rate(1200, 120))
    rhythm = Rhythm(first=15, interval=10)

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None = None,
        webhook_secrets: Sequence[str] = (),
        secret_encoding: Encoding = "utf8",
        api_key_header: str = "x-freepik-api-key",
        price: Cost | None = None,
    ) -> None:
        super().__init__(api_key=api_key, base_url=base_url)
        self.keys = tuple(parse_key(text, secret_encoding) for text in webhook_secrets)
        self.trust = Trust.SIGNED_BODY if self.keys else Trust.CAPABILITY_TOKEN
        if not re.fullmatch(r"[A-Za-z0-9-]+", api_key_header):
            raise ValueError(f"the API key header of {self.name} is not the name of a header")
        self.api_key_header = api_key_header
        self.price = price

    def warnings(self) -> tuple[SettingsWarning, ...]:
        if self.keys:
            return ()
        return (
            SettingsWarning(
                code="freepik_callbacks_unverified",
                effect="its callbacks are hints, each confirmed by a status call",
                remedy="set FREEPIK_WEBHOOK_SECRET; it is in the developer dashboard, where the API key is",
            ),
        )

    @classmethod
    def options_for_scale(cls, scale: int) -> dict[str, Any]:
        return {"scale_factor": f"{scale}x"}

    def check(self, picture: Picture, options: ProviderOptions) -> None:
        factor = int(options.to_send().get("scale_factor", "2x").removesuffix("x"))
        if picture.width * picture.height * factor * factor > MAX_OUTPUT_PIXELS:
            raise TaskRefused(
                f"{picture.width}x{picture.height} at {factor}x is more than the {MAX_OUTPUT_PIXELS} pixels that a "
                "result may have; choose a smaller scale_factor or a smaller image",
                field="options.scale_factor",
                code="output_too_large",
            )

    def submit(self, task: Task, callback_url: str | None) -> Exchange[Report]:
        body = parsing.merged(task.options, task.passthrough)
        body.pop("webhook_url", None)
        if callback_url is not None:
            body["webhook_url"] = callback_url
        answer = yield json_request("POST", self._url(), self._headers(), body, picture=task.picture, at=("image",))
        with parsing.hiding(callback_url, task.options.get("prompt")):
            return self.submitted(answer)

    def submitted(self, response: httpx.Response) -> Report:
        if not response.is_success:
            raise self._refused(response)
        body = json_answer(response)
        try:
            remote_id = parsing.identifier(_task(body).get("task_id"), "task_id")
        except Unreadable as exc:
            raise unreadable(exc, response, body, self.api_key) from exc
        try:
            return self._report(body)
        except Unreadable:
            # Accepted, and named: an oddity in the rest must not lose the id of a task that is paid for.
            return Report(remote_id, State.RUNNING, cost=self.price)

    def poll(self, remote_id: str) -> Exchange[Report]:
        answer = yield plain_request("GET", f"{self._url()}/{quote(remote_id, safe='')}", self._headers())
        return self.polled(answer)

    def polled(self, response: httpx.Response) -> Report:
        if not response.is_success:
            error = self._refused(response)
            raise TaskNotFound(str(error), code=error.code) if response.status_code == 404 else error
        body = json_answer(response)
        try:
            return self._report(body)
        except Unreadable as exc:
            raise unreadable(exc, response, body, self.api_key) from exc

    def verify(self, callback: Callback, now: datetime) -> None:
        if self.keys:
            verify_callback(
                callback,
                self.keys,
                now=now,
                versions=_VERSIONS,
                hint="is FREEPIK_WEBHOOK_SECRET of the same account, and FREEPIK_WEBHOOK_SECRET_ENCODING right?",
            )

    def read(self, callback: Callback) -> Report | None:
        try:
            return self._report(json_body(callback))
        except Unreadable as exc:
            raise exc.as_callback() from exc

    def delivery_id(self, callback: Callback) -> str | None:
        value = callback.header("webhook-id")
        return value.decode("latin-1")[: parsing.MAX_ID_CHARS] if value else None

    def _url(self) -> str:
        return f"{self.base_url}/v1/ai/image-upscaler"

    def _headers(self) -> dict[str, str]:
        return {self.api_key_header: self.api_key}

    def _report(self, body: Any) -> Report:
        task = _task(body)
        remote_id = parsing.identifier(task.get("task_id"), "task_id")
        status = parsing.word(task["status"] if "status" in task else task.get("task_status"), "status")
        generated = parsing.items(task.get("generated"), "generated")
        state = _STATES.get(status.upper(), State.RUNNING)
        if state is State.SUCCEEDED:
            images = [image for item in generated if (image := self._image(item))]
            return parsing.done(remote_id, images, task, remote_status=status, cost=self.price)
        error = None
        if state is State.FAILED:
            error = Failure(
                "failed",
                "Freepik reports that the task failed and gives no reason; try another image or other options",
                permanent=False,
            )
        return Report(remote_id, state, error=error, cost=self.price, remote_status=status)

    def _image(self, item: Any) -> Image | None:
        image = parsing.result(item, "url", base_url=self.base_url)
        if image is None or image.url is None or "exp=" not in image.url:
            return image
        until = re.search(r"(?:^|[?&=~])exp=([0-9]{9,13})(?![0-9])", urlsplit(image.url).query)
        return replace(image, expires_at=parsing.moment(until[1]) if until else None)

    def _refused(self, response: httpx.Response) -> ProviderError:
        said = parsing.error_body(response)
        message = _problem(said) if isinstance(said, dict) else said
        return parsing.redirected(response) or refusal(
            response,
            code=None,
            message=parsing.sentence(message, self.api_key),
            permanent=parsing.permanent_status(response.status_code),
            own_shape=isinstance(said, dict) and message is not None,
        )


def _task(body: Any) -> Mapping[str, Any]:
    whole = parsing.mapping(body, "the body")
    return parsing.mapping(whole["data"], "data") if whole.get("data") is not None else whole


def _problem(said: Mapping[str, Any]) -> str | None:
    """Return the message of an error, with its notes on single parameters; some answers nest it under `problem`."""
    problem = said.get("problem")
    if isinstance(problem, dict):
        said = problem
    parts = [parsing.words(said)]
    params = said.get("invalid_params")
    for param in params[:10] if isinstance(params, list) else ():
        if isinstance(param, dict) and (reason := parsing.first_text(param, "reason")):
            name = parsing.first_text(param, "name")
            parts.append(f"{name}: {reason}" if name else reason)
    return "; ".join(part for part in parts if part) or None
