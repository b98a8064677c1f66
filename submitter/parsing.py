"""
Reading what providers say: typed, bounded, and without surprises whatever the bytes.

Readers of required fields raise `Unreadable`; the provider turns it into `AnswerLost` (an answer to our call) or
`CallbackUnreadable` (a callback). Readers of optional fields return None for what makes no sense.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from submitter.errors import AnswerLost, CallbackUnreadable, ProviderError, ProviderRefused
from submitter.vocabulary import Cost, Failure, Image, Report, State

MAX_ID_CHARS = 256
MAX_URL_CHARS = 8192
MAX_IMAGES = 64
MAX_MESSAGE_CHARS = 500
MAX_ERROR_BYTES = 1 << 20


class Unreadable(ValueError):
    """A field that must be there is missing or of a wrong kind. The message names the field, never its value."""

    def as_answer(self) -> AnswerLost:
        return AnswerLost(f"the provider's answer can't be read: {self}", code="unreadable_answer")

    def as_callback(self) -> CallbackUnreadable:
        return CallbackUnreadable(f"the callback can't be read: {self}")


# --- Fields -----------------------------------------------------------------------------------------------------------


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Unreadable(f"{name} is not an object")
    return value


def items(value: Any, name: str) -> list[Any]:
    """A list, of which no more than `MAX_IMAGES` are read; null and missing are empty."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Unreadable(f"{name} is not a list")
    return value[:MAX_IMAGES]


def word(value: Any, name: str) -> str:
    """A short printable text, such as a status."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS or not value.isprintable():
        raise Unreadable(f"{name} is not a short text")
    return value


def identifier(value: Any, name: str) -> str:
    """A task's id: a short text that can stand in an address (so not only dots)."""
    if not word(value, name).strip(". "):
        raise Unreadable(f"{name} is not an id")
    return str(value)


def link(value: Any) -> str | None:
    """*value* if it is a web address that may be followed, else None."""
    if not isinstance(value, str) or len(value) > MAX_URL_CHARS or not value.isprintable():
        return None
    if not re.match(r"https?://[^\s/?#\\]", value, re.IGNORECASE) or re.search(r"[\s\\]", value):
        return None
    try:
        split = urlsplit(value)
        return value if split.hostname and split.port != 0 else None
    except ValueError:
        return None


def moment(value: Any) -> datetime | None:
    """A Unix time in seconds or milliseconds, told apart by magnitude; number or text. None unless 2001 to 2100."""
    seconds = number(value)
    if seconds is None:
        return None
    if seconds >= 10**11:
        seconds /= 1000
    return datetime.fromtimestamp(float(seconds), UTC) if 10**9 <= seconds <= 4_102_444_800 else None


def number(value: Any) -> Decimal | None:
    """A number, or a text that is one; None if it is absurd or not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int) and abs(value) >= 10**15:
        return None
    text = str(value)
    if len(text) > 32 or not re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", text, re.ASCII):
        return None
    return Decimal(text)


def cost(value: Any, unit: str) -> Cost | None:
    amount = number(value)
    return Cost(amount, unit) if amount is not None and amount >= 0 else None


def answered_at(response: httpx.Response) -> datetime | None:
    """The answer's own `Date`, because a stored answer is read long after it came."""
    try:
        date = parsedate_to_datetime(response.headers.get("date", ""))
        return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def after(start: datetime | None, seconds: Any, *, at_most: int = 31 * 86400) -> datetime | None:
    """*start* plus a sensible number of seconds; None if either is missing or absurd."""
    delay = number(seconds)
    if start is None or delay is None or not 0 < delay <= at_most:
        return None
    try:
        return start + timedelta(seconds=float(delay))
    except OverflowError:
        return None


def presigned_until(url: str) -> datetime | None:
    """When a presigned S3 address stops working (`X-Amz-Date` + `X-Amz-Expires`)."""
    query = parse_qs(urlsplit(url).query, max_num_fields=100) if url.count("&") < 100 else {}
    try:
        signed_at = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return after(signed_at, query["X-Amz-Expires"][0])
    except (KeyError, ValueError):
        return None


NO_RESULT = "no_result_url"
"""The code of a task that is done and names no image."""


# --- Results ----------------------------------------------------------------------------------------------------------


def done(
    remote_id: str | None,
    images: Iterable[Image],
    seen: Any,
    *,
    remote_status: str | None,
    cost: Cost | None = None,
) -> Report:
    """A finished task. One without a usable link is paid and lost: that must be seen, with the keys that were there."""
    found = tuple(images)[:MAX_IMAGES]
    if found:
        return Report(remote_id, State.SUCCEEDED, found, cost=cost, remote_status=remote_status)
    error = Failure(
        NO_RESULT, f"the task is done but its answer names no image; keys seen: {keys_of(seen)}", permanent=True
    )
    return Report(remote_id, State.FAILED, error=error, cost=cost, remote_status=remote_status)


def keys_of(value: Any) -> str:
    """The names of the fields two levels down, never their values."""
    names: list[str] = []
    for layer in (value, *(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())):
        if isinstance(layer, dict):
            names += [name for name in layer if isinstance(name, str) and re.fullmatch(r"\w{1,40}", name)]
    return ", ".join(dict.fromkeys(names[:30])) or "none"


# --- Errors -----------------------------------------------------------------------------------------------------------


def sentence(text: Any, *hidden: str) -> str | None:
    """
    *text* made fit for a message: one bounded printable line without *hidden* texts and without the paths of addresses
    (a callback address is a secret). None if nothing is left, or if it is a page and not a sentence.
    """
    if not isinstance(text, str) or re.match(r"\s*<(!|\?|html|head|body)", text, re.IGNORECASE):
        return None
    text = text[: MAX_MESSAGE_CHARS * 8]
    for secret in hidden:
        if len(secret) >= 4:
            text = text.replace(secret, "[hidden]")
    text = re.sub(r"(https?://)(?:[^\s/?#@]*@)?([^\s/?#\"'<>@]+)[/?#@][^\s\"'<>]*", r"\1\2/[hidden]", text, flags=re.I)
    text = re.sub(r"https?%3A%2F%2F\S*", "[hidden]", text, flags=re.I)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text[:MAX_MESSAGE_CHARS].strip() or None


def error_body(response: httpx.Response) -> dict[str, Any] | str | None:
    """What an error answer says: an object, a text, or nothing that may be quoted (a gateway's page, bytes)."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "html" in kind or len(response.content) > MAX_ERROR_BYTES:
        return None
    try:
        value = json.loads(response.content)
    except (ValueError, RecursionError):
        return response.content.decode("utf-8", "replace") if kind == "text/plain" else None
    return value if isinstance(value, dict | str) else None


def first_text(body: Mapping[str, Any], *names: str) -> str | None:
    """The first of the named fields that is a text with something in it."""
    return next((body[name] for name in names if isinstance(body.get(name), str) and body[name].strip()), None)


@contextmanager
def hiding(*texts: str | None) -> Iterator[None]:
    """Keep what we sent (a prompt, a callback address) out of the messages of errors that quote the provider."""
    try:
        yield
    except ProviderError as exc:
        exc.args = (sentence(str(exc), *filter(None, texts)) or exc.code,)
        raise


def permanent_status(status: int) -> bool:
    return 400 <= status < 500 and status not in (408, 425)


def redirected(response: httpx.Response) -> ProviderRefused | None:
    """3xx: nothing is followed with a key in hand."""
    if not 300 <= response.status_code < 400:
        return None
    return ProviderRefused(
        f"the provider answered HTTP {response.status_code}, a redirect; is the base URL right?",
        code=f"http_{response.status_code}",
    )


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """*base* with *extra* merged in, objects key by key; *extra* wins, but never puts a value in an object's place."""
    result = dict(base)
    for key, value in extra.items():
        ours = result.get(key)
        if isinstance(ours, dict):
            result[key] = merged(ours, value) if isinstance(value, Mapping) else ours
        else:
            result[key] = value
    return result


def form_text(value: Any) -> str:
    """A value as the text of a form field."""
    if isinstance(value, str):
        return value
    return json.dumps(value)
