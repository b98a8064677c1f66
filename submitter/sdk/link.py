"""
The connection to a receiver: requests, retries, and reading of answers. No I/O.

A call is retried while there is no answer, or one that means "later" (429, 502, 503, 504), until its time is up: by
default 60 s, which outlasts a restart of the receiver. A call whose repetition would do something twice is retried only
if the first try certainly did nothing; all others are safe by their nature or by their Idempotency-Key.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from submitter.connecting import checked_url
from submitter.errors import Conflict, Invalid, NoReceiver, NotFound, Overloaded, RequestRefused, Unauthorized
from submitter.retry_after import retry_after_seconds
from submitter.sdk.steps import Emit, Sleep, Steps, send
from submitter.sdk.values import Value

V = TypeVar("V", bound=Value)

DEFAULT_TIMEOUT_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 2.0
LATER = frozenset({429, 502, 503, 504})
_LONGEST_WISH_SECONDS = 30.0
_STALL_SECONDS = 60.0
_PROBE_SECONDS = 5.0
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
CUT = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
"""What OpenSSL calls the first bytes of a server that does not speak TLS."""
_REFUSALS: Mapping[int, type[RequestRefused]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    429: Overloaded,
    503: Overloaded,
}


class Link:
    """
    The receiver at *url*, called with the bearer *token*.

    *timeout* is the number of seconds that a call may take with all its tries. *on_retry* gets a message, fit for a
    terminal, whenever a call or a stream was cut off and is retried. *clock* counts seconds.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        on_retry: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = checked_url(url)
        if not (token.isascii() and token.isprintable() and token.strip()):
            raise Unauthorized("this can't be a token", code="invalid_token", remedy="pass one of RECEIVER_API_TOKENS")
        self._authorization = f"Bearer {token}"
        self.timeout = timeout
        self.on_retry = on_retry or (lambda why: None)
        self.clock = clock

    def deadline(self, timeout: float | None) -> float:
        """Return the time, by `clock`, by which a call that begins now must end."""
        return self.clock() + (self.timeout if timeout is None else timeout)

    def request(
        self,
        method: str,
        path: str,
        *,
        patience: float = _STALL_SECONDS,
        headers: Mapping[str, str] | None = None,
        **content: Any,
    ) -> httpx.Request:
        """Build a request. *patience*: the most seconds without a byte. *content*: as `httpx.Request` takes it."""
        limit = max(patience, 0.05)
        timeout = httpx.Timeout(limit, connect=min(limit, 10.0))
        return httpx.Request(
            method,
            self.url + path,
            headers={
                "authorization": self._authorization,
                "accept": "application/json",
                "accept-encoding": "identity",
                **(headers or {}),
            },
            extensions={"timeout": timeout.as_dict()},
            **content,
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        timeout: float | None = None,
        repeatable: bool = True,
        **content: Any,
    ) -> Steps[httpx.Response]:
        """Send a request until its answer is final; returns a successful answer."""
        return (
            yield from self.retried(
                lambda patience: self.request(method, path, patience=patience, **content),
                timeout=timeout,
                repeatable=repeatable,
            )
        )

    def retried(
        self,
        make: Callable[[float], httpx.Request],
        *,
        timeout: float | None = None,
        repeatable: bool = True,
    ) -> Steps[httpx.Response]:
        """Do `call` with a request that is built for each try; *make* gets the most seconds of silence."""
        deadline, tries = self.deadline(timeout), 0
        while True:
            tries += 1
            try:
                answer = yield from send(make(min(deadline - self.clock(), _STALL_SECONDS)))
            except httpx.RequestError as exc:
                if tries == 1 and isinstance(exc, CUT) and (yield from self.speaks_tls()):
                    raise self.wrong_scheme() from exc
                if not repeatable and not isinstance(exc, _NOT_SENT):
                    raise _answer_lost(self.url, exc) from exc
                yield from self.pause(deadline, tries, cause=exc)
                continue
            later = answer.status_code in (LATER if repeatable else (429, 503))
            wish = retry_after_seconds(answer.headers, longest=_LONGEST_WISH_SECONDS)
            pause = pause_seconds(tries) if wish is None else wish
            if not later or self.clock() + pause >= deadline:
                return self.checked(answer)
            self.on_retry(f"{self.url} answered {answer.status_code}; trying again")
            yield Sleep(pause)

    def pause(self, deadline: float, tries: int, *, cause: Exception) -> Generator[Sleep | Emit, Any, None]:
        """Wait before another try, or raise `NoReceiver` if there is no time left for it or it could not help."""
        if isinstance(cause, httpx.DecodingError):
            raise self.compressed() from cause
        pause = pause_seconds(tries)
        if self.clock() + pause >= deadline or is_hopeless(cause):
            raise self.gone(cause) from cause
        self.on_retry(f"no answer from {self.url} yet; trying again")
        yield Sleep(pause)

    def wrong_scheme(self) -> NoReceiver:
        """Return the error for a server that speaks TLS at an http URL, or does not at an https URL."""
        scheme, _, rest = self.url.partition("://")
        is_tls = scheme == "http"
        message = f"{self.url} {'speaks TLS' if is_tls else 'does not speak TLS'}"
        return NoReceiver(message, code="wrong_scheme", remedy=f"use {'https' if is_tls else 'http'}://{rest}")

    def speaks_tls(self) -> Steps[bool]:
        """Find out whether the server of an http URL wants https; asked without the token."""
        scheme, _, rest = self.url.partition("://")
        if scheme != "http":
            return False
        timeout = httpx.Timeout(_PROBE_SECONDS).as_dict()
        try:
            yield httpx.Request("GET", f"https://{rest}/healthz", extensions={"timeout": timeout})
        except httpx.RequestError as exc:
            return _certificate_problem(exc) is not None
        return True

    def gone(self, cause: Exception) -> NoReceiver:
        if _answered_without_tls(cause):
            return self.wrong_scheme()
        problem = _certificate_problem(cause)
        if problem is not None:
            message = f"the certificate of {self.url} is not good: {problem}"
            return NoReceiver(message, code="bad_certificate", remedy="name the authority to trust by SSL_CERT_FILE")
        return NoReceiver(
            f"no answer from {self.url} ({type(cause).__name__}): is it running?",
            code="no_answer",
            remedy="start it with `receiver serve`, or set SUBMITTER_RECEIVER_URL to where it is",
        )

    def compressed(self) -> NoReceiver:
        """Return the error for an answer in a content coding that was not requested."""
        return NoReceiver(
            f"an answer of {self.url} is compressed, which was not asked for",
            code="answer_compressed",
            remedy="find the proxy in between that compresses answers or labels them so",
        )

    def checked(self, answer: httpx.Response) -> httpx.Response:
        """Return *answer* if it is a success, else raise the error that it stands for."""
        if answer.is_success:
            return answer
        status, request_id = answer.status_code, answer.headers.get("x-request-id")
        problem = _problem(answer)
        if (
            "code" not in problem
            and status == 400
            and self.url.startswith("http:")
            and b"https" in answer.content.lower()
        ):
            raise self.wrong_scheme()
        if "code" not in problem and (status in (404, 405) or status < 400):
            raise self.stranger()
        if status >= 500 and (status != 503 or "code" not in problem):
            raise NoReceiver(f"{self.url} answered {status}", code=f"http_{status}", request_id=request_id)
        error = _REFUSALS.get(status, Invalid)(
            str(problem.get("detail") or f"the receiver answered {status}"),
            code=str(problem.get("code") or f"http_{status}"),
            status=status,
            problem=problem,
            field=_text(problem.get("field")),
            remedy=_text(problem.get("remedy")),
            request_id=request_id,
        )
        if isinstance(error, Overloaded):
            error.retry_after_seconds = retry_after_seconds(answer.headers, longest=3600.0)
        raise error

    def read(self, model: type[V], answer: httpx.Response) -> V:
        """Parse the value in an answer."""
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as exc:
            raise self.stranger() from exc

    def read_page(self, model: type[V], answer: httpx.Response) -> tuple[list[V], str | None]:
        """Parse the items of a page of a list, and the cursor of the next page."""
        try:
            page = answer.json()
            items = [model.model_validate(item) for item in page["items"]]
            following = page.get("next")
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise self.stranger() from exc
        return items, following

    def pages(
        self, model: type[V], path: str, params: Mapping[str, Any], *, timeout: float | None = None
    ) -> Steps[None]:
        """Emit the items of all pages of a list; each page has *timeout* for itself."""
        query = {name: value for name, value in params.items() if value not in (None, "", (), [])}
        while True:
            answer = yield from self.call("GET", path, params=query, timeout=timeout)
            items, following = self.read_page(model, answer)
            for item in items:
                yield Emit(item)
            if following is None:
                return
            query["cursor"] = following

    def stranger(self) -> NoReceiver:
        return NoReceiver(
            f"the server at {self.url} is not a receiver", code="not_a_receiver", remedy="check the URL and its path"
        )


def joined(value: str | Sequence[str]) -> str:
    """Format a filter of one or several values, as the API takes it."""
    return value if isinstance(value, str) else ",".join(value)


def moment(value: datetime | str | None) -> str | None:
    """Format a time as RFC 3339; a datetime without a zone is local time."""
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        problem = answer.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _certificate_problem(exc: BaseException | None) -> str | None:
    """Return the problem of the server's certificate, if it caused *exc*. Another try would not help."""
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return exc.verify_message
        exc = exc.__cause__ or exc.__context__
    return None


def is_hopeless(exc: BaseException) -> bool:
    """Return whether another try would end in the same way: a bad certificate, or a server without TLS."""
    return _certificate_problem(exc) is not None or _answered_without_tls(exc)


def _answered_without_tls(exc: BaseException | None) -> bool:
    """Return whether the handshake failed because the server does not speak TLS."""
    while exc is not None:
        if isinstance(exc, ssl.SSLError) and exc.reason in _NO_TLS:
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _answer_lost(url: str, cause: Exception) -> NoReceiver:
    return NoReceiver(
        f"the answer of {url} was lost ({type(cause).__name__})",
        code="answer_lost",
        remedy="see whether it was carried out before calling again",
    )


def pause_seconds(tries: int) -> float:
    """Return the pause before try *tries* + 1: doubling up to `LONGEST_PAUSE_SECONDS`, with jitter."""
    return min(0.1 * 2.0 ** min(tries, 10), LONGEST_PAUSE_SECONDS) * random.uniform(0.7, 1.0)
