"""
Reading providers' answers and callbacks: typed, bounded, and without surprises for any bytes.

Readers of required fields raise `Unreadable`; the provider turns it into `AnswerLost` (an answer to our call) or
`CallbackUnreadable` (a callback). Readers of optional fields return None for invalid values.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote, unquote_to_bytes, urlsplit

import httpx

from submitter.errors import AnswerLost, CallbackUnreadable, ProviderError, ProviderRefused
from submitter.image_files import MemoryBytes, magic_type, measure
from submitter.vocabulary import Cost, Failure, Image, Report, State

MAX_ID_CHARS = 256
MAX_URL_CHARS = 8192
MAX_IMAGES = 64
MAX_MESSAGE_CHARS = 500
MAX_ERROR_BYTES = 1 << 20
_URL_CHARS = "!#$%&'()*+,/:;=?@[]~"
"""Characters other than letters and digits that are kept in the path and query of a link."""


class Unreadable(ValueError):
    """A field that must be there is missing or of a wrong kind. The message names the field, never its value."""

    def __init__(self, message: str, *, code: str = "unreadable_answer") -> None:
        super().__init__(message)
        self.code = code

    def as_answer(self) -> AnswerLost:
        return AnswerLost(f"the provider's answer can't be read: {self}", code=self.code)

    def as_callback(self) -> CallbackUnreadable:
        return CallbackUnreadable(f"the callback can't be read: {self}")


# --- Fields -----------------------------------------------------------------------------------------------------------


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Unreadable(f"{name} is not an object")
    return value


def items(value: Any, name: str) -> list[Any]:
    """
    Read a list without its nulls, at most `MAX_IMAGES` items; null and missing are empty.

    An object or a text in place of a list is a list of itself.
    """
    if value is None:
        return []
    if isinstance(value, dict | str):
        return [value]
    if not isinstance(value, list):
        raise Unreadable(f"{name} is not a list")
    return [item for item in value[: 4 * MAX_IMAGES] if item is not None][:MAX_IMAGES]


def word(value: Any, name: str) -> str:
    """Read a short printable text, such as a status."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS or not value.isprintable():
        raise Unreadable(f"{name} is not a short text")
    return value


def identifier(value: Any, name: str) -> str:
    """Read a task's id: a whole number, or a short text that can be part of a URL (so not only dots)."""
    if type(value) is int and 0 <= value < 10**20:
        return str(value)
    if not word(value, name).strip(". "):
        raise Unreadable(f"{name} is not an id")
    return str(value)


def link(value: Any, *, base_url: str = "https:") -> str | None:
    """
    Read *value* as a web address that may be followed, else None.

    Normalized as in browsers: white space around it is removed, spaces and non-ASCII letters are percent-encoded, and
    one that begins with `//` has the scheme of *base_url*.
    """
    if not isinstance(value, str) or len(value) > MAX_URL_CHARS:
        return None
    if _PLAIN_LINK.fullmatch(value):
        return value
    text = value.strip()
    if text.startswith("//"):
        text = base_url.partition("//")[0] + text
    if not text.isprintable() or "\\" in text or not re.match(r"https?://[^\s/?#]", text, re.IGNORECASE):
        return None
    scheme, _, rest = text.partition("://")
    host, path = re.fullmatch(r"([^/?#]*)(.*)", rest).groups()  # type: ignore[union-attr]  # it matches any line
    text = f"{scheme}://{host}{quote(path, safe=_URL_CHARS)}"
    if re.search(r"\s", host) or len(text) > MAX_URL_CHARS:
        return None
    try:
        split = urlsplit(text)
        return text if split.hostname and split.port != 0 else None
    except ValueError:
        return None


_PLAIN_LINK = re.compile(r"https?://[a-z0-9.-]*[a-z0-9](:[1-9][0-9]{0,3})?(/[A-Za-z0-9!#$%&'()*+,/:;=?@~._-]*)?")
"""Links that need no normalizing, as nearly all; parsing a link is a good part of reading a callback."""


def result(item: Any, *names: str, base_url: str, expires_at: datetime | None = None) -> Image | None:
    """
    The image that *item* names: a link, a `data:` address or base64 that holds it, or an object with one under one of
    *names*. *base_url* is the provider's.

    None if it names no usable image.
    """
    values = [item.get(name) for name in names] if isinstance(item, dict) else [item]
    for value in values:
        if url := link(value, base_url=base_url):
            return Image(url=url, expires_at=expires_at)
        if isinstance(value, str) and (data := _inline(value)):
            return Image(data=data, content_type=magic_type(data))
    return None


def _inline(text: str) -> bytes | None:
    """The bytes of a `data:` address, or of base64 alone, if they are a whole image."""
    head = re.match(r"\s*data:[^,]{0,200},", text, re.IGNORECASE)
    try:
        if head is None:
            data = base64_bytes(text)
        elif head[0].rstrip(",").rstrip().lower().endswith(";base64"):
            data = base64_bytes(unquote(text[head.end() :]))
        else:
            data = unquote_to_bytes(text[head.end() :].strip())
        measure(MemoryBytes(data))
    except ValueError:
        return None
    return data


def base64_bytes(text: str) -> bytes:
    """
    The bytes that *text* writes in base64: of either alphabet, padded or not, in lines or in one; else ValueError.

    Nothing is skipped but white space, and the alphabets are not mixed: what can be read in two ways is not read.
    """
    digits = re.sub(r"\s+", "", text)
    bare = digits.rstrip("=")
    padding = len(digits) - len(bare)
    if padding > 2 or (padding and len(digits) % 4) or not bare:
        raise ValueError("not base64")
    urlsafe = not {"-", "_"}.isdisjoint(bare)
    if urlsafe and not {"+", "/"}.isdisjoint(bare):
        raise ValueError("of two alphabets")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_" if urlsafe else None, validate=True)


def moment(value: Any) -> datetime | None:
    """
    Read a time between 2001 and 2100, else None.

    Unix time in seconds or milliseconds, distinguished by magnitude, as number or text; or RFC 3339 text.
    """
    seconds = number(value)
    if seconds is None:
        return _written_moment(value) if isinstance(value, str) and len(value) <= 40 else None
    if seconds >= 10**11:
        seconds /= 1000
    return datetime.fromtimestamp(float(seconds), UTC) if 10**9 <= seconds <= 4_102_444_800 else None


def _written_moment(text: str) -> datetime | None:
    try:
        written = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    written = written if written.tzinfo else written.replace(tzinfo=UTC)
    return written.astimezone(UTC) if 2001 < written.year < 2100 else None


def number(value: Any) -> Decimal | None:
    """Read a number, or a text that is a number; None if it is absurd or not a number."""
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
    """Return the answer's own `Date`, because a stored answer is read long after it arrived."""
    try:
        date = parsedate_to_datetime(response.headers.get("date", ""))
        return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def after(start: datetime | None, seconds: Any, *, at_most: int = 31 * 86400) -> datetime | None:
    """Return *start* plus a sensible number of seconds; None if either is missing or absurd."""
    delay = number(seconds)
    if start is None or delay is None or not 0 < delay <= at_most:
        return None
    try:
        return start + timedelta(seconds=float(delay))
    except OverflowError:
        return None


def presigned_until(url: str) -> datetime | None:
    """Return when a presigned S3 URL expires (`X-Amz-Date` + `X-Amz-Expires`)."""
    query = parse_qs(urlsplit(url).query, max_num_fields=100) if url.count("&") < 100 else {}
    try:
        signed_at = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return after(signed_at, query["X-Amz-Expires"][0])
    except (KeyError, ValueError):
        return None


NO_RESULT = "no_result_url"
"""The code of a task that is done and names no image."""
EMPTY_POLLS = 5
"""The number of such answers in a row before it is accepted as true: links are often listed a bit late."""


# --- Results ----------------------------------------------------------------------------------------------------------


def done(
    remote_id: str | None,
    images: Iterable[Image],
    seen: Any,
    *,
    remote_status: str | None,
    cost: Cost | None = None,
) -> Report:
    """Report a finished task. Without a usable link it is paid and lost: the error lists the keys that were seen."""
    found = tuple(images)[:MAX_IMAGES]
    if found:
        return Report(remote_id, State.SUCCEEDED, found, cost=cost, remote_status=remote_status)
    error = Failure(
        NO_RESULT, f"the task is done but its answer names no image; keys seen: {keys_of(seen)}", permanent=True
    )
    return Report(remote_id, State.FAILED, error=error, cost=cost, remote_status=remote_status)


def lists_nothing(report: Report) -> bool:
    """Return whether the task is done, and its image is not listed (yet)."""
    return report.error is not None and report.error.code == NO_RESULT


def keys_of(value: Any) -> str:
    """Return the names of the fields two levels down, never their values."""
    names: list[str] = []
    for layer in (value, *(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())):
        if isinstance(layer, dict):
            names += [name for name in layer if isinstance(name, str) and re.fullmatch(r"\w{1,40}", name)]
    return ", ".join(dict.fromkeys(names[:30])) or "none"


# --- Errors -----------------------------------------------------------------------------------------------------------


def sentence(text: Any, *hidden: str) -> str | None:
    """
    Make *text* fit for a message: a bounded printable line without *hidden* texts and without the paths of URLs (a
    callback URL is a secret). None if nothing is left, or if it is a page and not a sentence.
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
    """Read the body of an error answer: an object or a text; None if it can't be quoted (a gateway's page, bytes)."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "html" in kind or len(response.content) > MAX_ERROR_BYTES:
        return None
    try:
        value = json.loads(response.content)
    except (ValueError, RecursionError):
        return response.content.decode("utf-8", "replace") if kind == "text/plain" else None
    return value if isinstance(value, dict | str) else None


def words(said: Any, *, levels: int = 3) -> str | None:
    """Collect the texts of an error body, under any of the usual names, in objects and lists of them."""
    found = list(dict.fromkeys(_texts(said, levels)))[:5]
    return "; ".join(found) or None


_WORDS = ("message", "msg", "detail", "error_description", "error", "errors", "reason", "title")


def _texts(said: Any, levels: int) -> list[str]:
    if isinstance(said, str):
        return [said.strip()] if said.strip() else []
    if levels and isinstance(said, list):
        return [text for item in said[:10] for text in _texts(item, levels - 1)]
    if levels and isinstance(said, dict):
        return next((found for name in _WORDS if (found := _texts(said.get(name), levels - 1))), [])
    return []


def first_text(body: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of the named fields that is a non-empty text."""
    return next((body[name] for name in names if isinstance(body.get(name), str) and body[name].strip()), None)


@contextmanager
def hiding(*texts: str | None) -> Iterator[None]:
    """Keep texts that we sent (a prompt, a callback URL) out of the messages of errors that quote the provider."""
    try:
        yield
    except ProviderError as exc:
        exc.args = (sentence(str(exc), *filter(None, texts)) or exc.code,)
        raise


def permanent_status(status: int) -> bool:
    return 400 <= status < 500 and status not in (408, 425)


def redirected(response: httpx.Response) -> ProviderRefused | None:
    """Refuse a 3xx answer: no redirect is followed with an API key."""
    if not 300 <= response.status_code < 400:
        return None
    return ProviderRefused(
        f"the provider answered HTTP {response.status_code}, a redirect; is the base URL right?",
        code=f"http_{response.status_code}",
    )


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Merge *extra* into *base*, objects key by key; *extra* wins, but never replaces an object by another value."""
    result = dict(base)
    for key, value in extra.items():
        ours = result.get(key)
        if isinstance(ours, dict):
            result[key] = merged(ours, value) if isinstance(value, Mapping) else ours
        else:
            result[key] = value
    return result


def form_text(value: Any) -> str:
    """Format a value as the text of a form field."""
    if isinstance(value, str):
        return value
    return json.dumps(value)
