"""
`Provider`: the base class of the five, and the guide to writing a sixth.

A provider is one file in `submitter/providers/` and one line in `submitter/providers/__init__.py`. It knows its
protocol and nothing else: no sockets, no clock, no database, no environment. It builds whole `httpx.Request`s (absolute
URL and every header: a bare request gets no defaults from the client that sends it) and reads `httpx.Response`s.

What to write:

1. `Options`: a pydantic model of the documented request fields, under their documented names, without the input and
   the callback URL. Describe each field; give ranges and enums; give a default only where the page *requires* a field.
2. `check(picture, options)`: the documented limits of the input, so that a bad one is refused before it costs money.
3. `submit(task, callback_url)`: usually `answer = yield request; return self.submitted(answer)`.
4. `submitted(response)` and `polled(response)`: pure readers of the answers. They are called again on stored answers
   after a crash or a fix, so they use the response alone. They return a Report or raise one of the `ProviderError`s:
   the class that they choose decides what happens to the job (see `errors.py`).
5. `verify(callback, now)`, for signed callbacks; `read(callback)`, for all callbacks.
6. The class attributes below: its rate limits, when to poll, how long its links live.
7. `Settings`, if an operator can set more than a key, an address and a pace; `warnings`, `callback_option` and
   `check_key` where the defaults don't fit.

A remote status that the page doesn't list means RUNNING, never an error and never FAILED.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from submitter import parsing
from submitter.errors import (
    AccountRefused,
    AnswerLost,
    CallbackUnreadable,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    TaskNotFound,
    TaskRefused,
)
from submitter.option_errors import explain_option
from submitter.parsing import Unreadable
from submitter.provider_settings import ProviderSettings, Rate, SettingsWarning
from submitter.retry_after import retry_after_seconds
from submitter.vocabulary import Callback, Exchange, Picture, Report, Task, Trust

_LONGEST_PAUSE_SECONDS = 3600.0


class ProviderOptions(BaseModel):
    """
    The options of every provider. Subclasses add the provider's own documented fields.

    Strict: text is not a number and an unknown name is refused, because a misspelt option of a paid call costs money.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    passthrough: dict[str, Any] = Field(
        default_factory=dict,
        description="Merged into the request body as it is, for fields that this version does not know.",
    )

    def to_send(self) -> dict[str, Any]:
        """Return the fields that the caller gave, plus required ones at their defaults; never `passthrough`."""
        given = self.model_dump(mode="json", exclude_unset=True, exclude={"passthrough"})
        required = {
            name: getattr(self, name) for name in type(self).required_by_provider if getattr(self, name) is not None
        }
        return {**required, **{name: value for name, value in given.items() if value is not None}}

    required_by_provider: ClassVar[tuple[str, ...]] = ()
    """Fields that the provider's page requires and that have a default here."""


def whole_number(value: Any) -> Any:
    """Refuse true for 1 and 2.0 for 2, which a Literal of numbers would accept. For a `BeforeValidator`."""
    if value is not None and type(value) is not int:
        raise ValueError("must be a whole number")
    return value


@dataclass(frozen=True, slots=True)
class Rhythm:
    """The timing of polls where no callback arrives, in seconds. Intervals grow by *growth* up to *cap*."""

    first: float
    interval: float
    growth: float = 1.5
    cap: float = 60.0


class Provider(ABC):
    """An upscaling API. Instances are immutable and safe to share; they hold the key, so never print them."""

    name: ClassVar[str]
    title: ClassVar[str]
    default_base_url: ClassVar[str]
    callbacks: ClassVar[bool]
    """It supports callbacks."""
    pollable: ClassVar[bool]
    """It has a status call."""
    trust: Trust | None
    """The trust in its callbacks, None if there are none."""
    wants_url: ClassVar[bool] = False
    """It accepts the input only as a public URL."""
    Options: ClassVar[type[ProviderOptions]]
    Settings: ClassVar[type[ProviderSettings]] = ProviderSettings
    """The settings for operators; `from_settings` takes an instance."""
    rates: ClassVar[tuple[Rate, ...]] = ()
    """Documented limits of submit calls; all of them apply."""
    poll_rates: ClassVar[tuple[Rate, ...]] = ()
    """Documented limits of status calls."""
    concurrency: ClassVar[int] = 8
    """Submit calls in flight at once, unless set otherwise."""
    rhythm: ClassVar[Rhythm] = Rhythm(first=5.0, interval=5.0)
    submit_timeout_seconds: ClassVar[float] = 60.0
    callback_timeout_seconds: ClassVar[float | None] = None
    """The documented time that it waits for our answer to its callback."""
    max_input_bytes: ClassVar[int | None] = None

    def __init__(self, *, api_key: str, base_url: str | None = None) -> None:
        self.api_key = _key(self.name, api_key)
        self.base_url = _address(self.name, base_url or self.default_base_url)

    @classmethod
    def from_settings(cls, settings: ProviderSettings) -> Self:
        """
        Build the provider that *settings* describe; without a key it still reads and verifies callbacks.

        Raises `ValueError` for settings that can't work, without quoting secrets.
        """
        key = settings.api_key.get_secret_value() if settings.api_key else "not-configured"
        return cls(api_key=key, base_url=settings.base_url, **settings.constructor_arguments())

    def warnings(self) -> tuple[SettingsWarning, ...]:
        """Return warnings about settings that work, but less well than they could. Default: none."""
        return ()

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> ProviderOptions:
        """Check the options *given* by the caller; `TaskRefused` names the first wrong one and its accepted values."""
        try:
            return cls.Options.model_validate(given)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            field = ".".join(("options", *(str(part) for part in first["loc"])))
            wrong = explain_option(first, tuple(cls.Options.model_fields))
            raise TaskRefused(f"{field}: {wrong}", field=field, code="invalid_options") from None

    @classmethod
    def options_for_scale(cls, scale: int) -> dict[str, Any]:
        """Options, to be `checked`, for a result *scale* times as large; `TaskRefused` where there are none."""
        return {"scale": scale}

    def task(self, picture: Picture, given: Mapping[str, Any]) -> Task:
        """Build a task of *picture* and the options *given* by the caller; `TaskRefused` names the first wrong one."""
        options = self.checked(given)
        self.check(picture, options)
        return Task(picture, options.to_send(), options.passthrough)

    def check(self, picture: Picture, options: ProviderOptions) -> None:  # noqa: B027 - nothing to refuse is fine
        """Refuse (`TaskRefused`) an input beyond the documented limits. Default: there are none."""

    def options_for_callback(self, options: Mapping[str, Any]) -> bool:
        """Return whether a task with these options wants a callback, if that is possible."""
        return self.callbacks

    def callback_option(self, options: ProviderOptions) -> str | None:
        """Return the name of the option by which the caller requires a callback; None if polling will do."""
        return None

    @abstractmethod
    def submit(self, task: Task, callback_url: str | None) -> Exchange[Report]:
        """Submit *task*; with *callback_url*, request callbacks there."""

    @abstractmethod
    def submitted(self, response: httpx.Response) -> Report:
        """Read the answer to a submit call, fresh or stored."""

    def poll(self, remote_id: str) -> Exchange[Report]:
        """Ask for the status of the task."""
        raise TypeError(f"{self.name} has no status call")

    def polled(self, response: httpx.Response) -> Report:
        """Read the answer to a status call, fresh or stored."""
        raise TypeError(f"{self.name} has no status call")

    def check_key(self) -> Exchange[None]:
        """
        Find out at no cost whether the key works: by the status of a task that does not exist.

        Raises `AccountRefused` for a key that doesn't.
        """
        try:
            yield from self.poll(_UNKNOWN_TASK)
        except TaskNotFound:
            pass

    def verify(self, callback: Callback, now: datetime) -> None:  # noqa: B027 - unsigned is the common case
        """Return if the callback is as trustworthy as `trust` says; raise `CallbackRefused` and nothing else."""

    def read(self, callback: Callback) -> Report | None:
        """Read the callback's report; None if it is not about a task. Raises `CallbackUnreadable` and nothing else."""
        raise CallbackUnreadable(f"{self.name} sends no callbacks")

    def delivery_id(self, callback: Callback) -> str | None:
        """Return the provider's own id of this delivery, to recognise replays; None if it has none."""
        return None


_UNKNOWN_TASK = "00000000-0000-4000-8000-000000000000"


def _key(name: str, text: str) -> str:
    text = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError(f"the API key of {name} is empty, or has spaces or other characters that no key has")
    return text


def _address(name: str, text: str) -> str:
    text = text.strip()
    try:
        url = httpx.URL(text)
        host = url.host
    except (httpx.InvalidURL, ValueError) as exc:
        raise ValueError(f"the base URL of {name} is not a URL") from exc
    if url.scheme not in ("http", "https") or not host or url.query or url.fragment:
        raise ValueError(f"the base URL of {name} must be http(s)://host[/path]")
    return text.rstrip("/")


# --- For the providers' readers -------------------------------------------------------------------------------------


def json_answer(response: httpx.Response) -> Any:
    """Parse the JSON of a 2xx answer. Raises `AnswerLost`: an unreadable answer may mean acceptance."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError) as exc:
        raise AnswerLost(
            f"the provider answered {response.status_code} with a body that is not JSON", code="unreadable_answer"
        ) from exc


def json_body(callback: Callback, *, max_depth: int = 32) -> Any:
    """Parse the JSON of a callback's body; raises `CallbackUnreadable` for anything else."""
    try:
        body = callback.body.decode("utf-8-sig")  # a byte order mark is not part of it (RFC 8259, 8.1)
        value = _json.decode(body)
    except (ValueError, RecursionError) as exc:
        raise CallbackUnreadable("the body is not JSON") from exc
    if body.count("{") + body.count("[") > max_depth and deeper_than(value, max_depth):
        raise CallbackUnreadable(f"the body is nested deeper than {max_depth} levels")
    return value


def busy_seconds(response: httpx.Response) -> float | None:
    """Return the wait that a busy provider asks for: at most an hour; None if it names none."""
    return retry_after_seconds(response.headers, longest=_LONGEST_PAUSE_SECONDS)


def refusal(
    response: httpx.Response,
    *,
    code: str | None,
    message: str | None,
    permanent: bool,
    own_shape: bool,
    status: int | None = None,
) -> ProviderError:
    """
    Apply the common rules to an answer that is not a success. *status* replaces the HTTP status if given.

    429 and 503: busy. 401, 402, 403: account. 502 and 504, and a 5xx that is not in the provider's own error shape:
    lost. Everything else: refused, with the provider's *code* and *message* where it gave them.
    """
    status = response.status_code if status is None else status
    said = (message or "").strip() or f"the provider answered HTTP {status}"
    name = code or f"http_{status}"
    if status in (429, 503):
        return ProviderBusy(said, code=name, retry_after_seconds=busy_seconds(response))
    if status in (401, 402, 403):
        return AccountRefused(said, code=name)
    if status in (502, 504) or (status >= 500 and not own_shape):
        return AnswerLost(said, code=name)
    return ProviderRefused(said, code=name, permanent=permanent)


def unreadable(exc: Unreadable, response: httpx.Response, body: Any, *hidden: str) -> ProviderError:
    """
    Return the error for a 2xx answer whose *body* lacks a required field.

    A refusal if it says so: with an error, or a status of its own. Otherwise the answer is lost, since the task may
    have been accepted; the error then quotes the body's texts, without the *hidden* ones.
    """
    said = parsing.sentence(parsing.words(body), *hidden)
    fault = body.get("error") or body.get("errors") if isinstance(body, dict) else None
    sources = [body, fault] if isinstance(fault, dict) else [body]
    numbers = [
        number
        for source in sources
        if isinstance(source, dict)
        for name in ("code", "status", "status_code", "statusCode")
        if (number := parsing.number(source.get(name))) is not None and 400 <= number < 600
    ]
    if numbers or fault:
        status = int(numbers[0]) if numbers else 400
        code = next((text for source in sources if (text := _code_word(source))), None)
        permanent = bool(numbers) and parsing.permanent_status(status)
        message = said or "the provider refused the call without a reason"
        return refusal(response, status=status, code=code, message=message, permanent=permanent, own_shape=True)
    lost = exc.as_answer()
    return AnswerLost(f"{lost}; it says: {said}", code=lost.code) if said else lost


def _code_word(source: Any) -> str | None:
    """Return an error's own short code, such as ILLEGAL_IMAGE_CONTENT."""
    text = parsing.first_text(source, "error_code", "code", "reason") if isinstance(source, dict) else None
    return text if text and re.fullmatch(r"[A-Za-z]\w{2,99}", text, re.ASCII) else None


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_json = json.JSONDecoder(parse_constant=_no_constants)


def deeper_than(value: Any, levels: int) -> bool:
    """Return whether a JSON value is nested deeper than *levels*: a parsed value may be too deep to serialize."""
    layer = [value]
    for _ in range(levels):
        layer = [
            child
            for item in layer
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not layer:
            return False
    return True
