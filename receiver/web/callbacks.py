"""
Callbacks from providers: `POST /callbacks/{provider}/{token}`.

The answer says whose fault it is. 404: not one of our tokens, determined without the database. 413: too large. 401: the
signature is invalid. 408: the body arrived too slowly. 503 with Retry-After: an internal error. 200: it is on disk. The
answer waits for nothing else, and nothing is read beyond what verifying needs: its meaning is determined afterwards,
from the stored bytes.

Refused callbacks are kept too, in case our secret turns out to be wrong, but within bounds of number and size, for each
source and in all: an attacker can fill neither the disk nor the evidence from others.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter as CountOf
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.domain.evidence import Evidence, headers_to_json
from receiver.domain.jobs import Source, Verdict
from receiver.domain.tokens import Claim, TokenInvalid, Tokens
from receiver.runtime.direct_protocol import DirectRequest
from receiver.runtime.group_commit import Overloaded
from receiver.runtime.logs import InfoLines
from receiver.runtime.metrics import Metrics
from receiver.runtime.request_ids import id_in, id_of
from receiver.runtime.route_path import route_path
from receiver.store.evidence import ROW_BYTES
from receiver.store.jobs import JobStore
from receiver.upstream.intake import Intake
from receiver.web.callback_bodies import BodyTooLarge, BodyTooSlow, CallbackBodies, SenderGone, TooManyBodies
from receiver.web.callback_budget import CallbackBudget
from receiver.web.kept_refusals import KeptRefusals
from receiver.web.problems import Problem
from submitter.errors import CallbackRefused
from submitter.provider import Provider
from submitter.vocabulary import Callback, Trust

log = structlog.get_logger("receiver.callbacks")
_RECORDED = InfoLines(log, "callback", "provider", "job", "verdict", "request_id")

CALLBACK_PATH = re.compile(rb"/callbacks/([a-z0-9_-]{1,32})/([A-Za-z0-9._-]{1,512})")
"""The path of an ordinary callback."""
_GRACE = timedelta(hours=24)
_METHODS = frozenset({"GET", "HEAD", "POST"})
_MAX_PEER_CHARS = 64


_PLAIN = ((b"content-type", b"text/plain; charset=utf-8"),)
_UNKNOWN = Problem(
    404, "unknown_callback_url", "this is not a valid callback URL", remedy="use the URL exactly as it was sent"
)
_TOO_SLOW = Problem(
    408, "too_slow", "the body arrived too slowly", remedy="send it in one go", headers={"connection": "close"}
)
_TOO_BIG = Problem(
    413, "too_large", "the body is too large", remedy="raise RECEIVER_MAX_CALLBACK_BYTES if that is intended"
)
_UNSIGNED = Problem(
    401, "signature_refused", "the signature is invalid", remedy="sign the raw body with the secret of this account"
)
_CUT = Problem(
    400, "body_cut", "the body is not as long as Content-Length says", remedy="send the whole body, unaltered"
)
_TOO_MANY = Problem(
    429,
    "too_many_callbacks",
    "too many callbacks for this job",
    remedy="try again later",
    headers={"retry-after": "60"},
)
_OVERLOADED = Problem(503, "unavailable", "not recorded", remedy="try again later", headers={"retry-after": "3"})


class CallbackRoute:
    """
    ASGI middleware that handles callbacks before the router: the hot path searches no table of routes.

    A trailing slash is ignored, as some providers and gateways add it. Everything else, other methods included, goes
    to *app*.
    """

    def __init__(self, app: ASGIApp, callbacks: Callable[[], ASGIApp]) -> None:
        self._app = app
        self._callbacks = callbacks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] == "http" else ""
        if path.startswith("/callbacks/") and scope["method"] in _METHODS:
            provider, _, token = path.removeprefix("/callbacks/").partition("/")
            if token.endswith("/"):
                token = token[:-1]
            if provider and token and "/" not in token:
                scope["path_params"] = {"provider": provider, "token": token}
                await self._callbacks()(scope, receive, send)
                return
        await self._app(scope, receive, send)


@dataclass(frozen=True, slots=True)
class CallbackLimits:
    """The limits of callbacks. `budget_bytes` is the disk space for the unsigned callbacks of one job."""

    max_bytes: int
    budget_bytes: int
    token_lifetime: timedelta


class Callbacks:
    """An ASGI application for one route; `scope["path_params"]` carries `provider` and `token`."""

    def __init__(
        self,
        intake: Intake,
        store: JobStore,
        providers: Mapping[str, Provider],
        tokens: Tokens,
        metrics: Metrics,
        limits: CallbackLimits,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._intake = intake
        self._store = store
        self._providers = providers
        self._tokens = tokens
        self._metrics = metrics
        self._max_bytes = limits.max_bytes
        self._token_lifetime = limits.token_lifetime + _GRACE
        self._clock = clock
        self._refusals = KeptRefusals()
        self._budget = CallbackBudget(limits.budget_bytes, store.evidence.unsigned_bytes)
        self.bodies = CallbackBodies()
        self._counters: dict[tuple[str, str], Counter] = {}
        self._unlogged: list[tuple[str, str, float, Callable[[], str]]] = []
        self._signing = {
            name.encode(): provider for name, provider in providers.items() if provider.trust is Trust.SIGNED_BODY
        }
        self._ack_seconds = {name: metrics.ack_seconds.labels(name) for name in providers}
        for name, provider in providers.items():
            if provider.callback_timeout_seconds is not None:
                metrics.ack_limit.labels(name).set(provider.callback_timeout_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        received_at = self._clock()
        params = scope["path_params"]
        provider = self._providers.get(params["provider"])
        claim = await self._claim(provider, params["token"], received_at)
        if provider is None or claim is None:
            self._counter("unknown" if provider is None else provider.name, "bad_token").inc()
            await _refuse(send, _UNKNOWN)
            return
        if scope["method"] in ("GET", "HEAD"):
            await _answer(send, 200, b"" if scope["method"] == "HEAD" else b"ok\n")
            return
        try:
            body = await self.bodies.read(receive, self._max_bytes, claim.job_id)
        except SenderGone:
            return
        except TooManyBodies as exc:
            self._count(provider.name, "too_many" if exc.of_job else "overloaded", claim.job_id)
            await _refuse(send, _TOO_MANY if exc.of_job else _OVERLOADED)
            return
        except BodyTooSlow:
            self._count(provider.name, "too_slow", claim.job_id)
            await _refuse(send, _TOO_SLOW)
            return
        except BodyTooLarge:
            self._count(provider.name, "too_large", claim.job_id)
            await _refuse(send, _TOO_BIG)
            return
        if not _is_whole(scope["headers"], body):
            self._count(provider.name, "cut", claim.job_id)
            await _refuse(send, _CUT)
            return
        client = scope.get("client")
        callback = Callback(
            headers=tuple(scope["headers"]),  # ASGI has their names in lower case
            body=body,
            received_at=received_at,
            peer=client[0][:_MAX_PEER_CHARS] if client else None,
        )
        try:
            provider.verify(callback, received_at)
        except CallbackRefused as exc:
            await self._refused(provider, claim, callback, exc)
            await _refuse(send, _UNSIGNED)
            return
        evidence = _evidence(provider, claim.job_id, callback)
        budgeted = 0 if provider.trust is Trust.SIGNED_BODY else size_of(evidence)
        try:
            if budgeted and not await self._budget.admits(claim.job_id, budgeted):
                await self._over_budget(provider, claim)
                await _refuse(send, _TOO_MANY)
                return
            try:
                await self._intake.record(evidence)
            finally:
                if budgeted:
                    self._budget.written(claim.job_id, budgeted)
        except Overloaded:
            self._count(provider.name, "overloaded", claim.job_id)
            await _refuse(send, _OVERLOADED)
            return
        except Exception as exc:  # noqa: BLE001 (an internal error is 503, and nothing is lost)
            self._not_recorded(provider.name, claim.job_id, exc)
            await _refuse(send, _OVERLOADED)
            return
        await send(_OK)
        await send(_OK_BODY)
        self._answered(provider.name, claim.job_id, time.perf_counter() - began, partial(id_of, scope))

    def take(self, request: DirectRequest) -> bool:
        """
        Answer an ordinary callback without the application: signed, fresh, complete, its token of the newest key.

        The result is False for all others. The application answers them, and checks everything again.
        """
        began = time.perf_counter()
        provider = self._signing.get(request.parts[0])
        if provider is None or len(request.body) > self._max_bytes or not _has_length(request.headers, request.body):
            return False
        received_at = self._clock()
        oldest = received_at.timestamp() - self._token_lifetime.total_seconds()
        job_id = self._tokens.job_of_callback(request.parts[1], request.parts[0], not_before=oldest)
        if job_id is None:
            return False
        peer = request.peer and request.peer[:_MAX_PEER_CHARS]
        callback = Callback(tuple(request.headers), request.body, received_at, peer)
        try:
            provider.verify(callback, received_at)
        except CallbackRefused:
            return False

        def recorded(error: BaseException | None) -> None:
            if error is None:
                request.answer(200, _OK["headers"])
                self._answered(provider.name, job_id, time.perf_counter() - began, partial(id_in, request.headers))
                return
            if isinstance(error, Overloaded):
                self._count(provider.name, "overloaded", job_id, request_id=id_in(request.headers))
            else:
                self._not_recorded(provider.name, job_id, error, request_id=id_in(request.headers))
            request.answer(_OVERLOADED.status, *_problem(_OVERLOADED))

        try:
            self._intake.hand_in(_evidence(provider, job_id, callback), recorded)
        except Overloaded:
            return False
        return True

    async def _claim(self, provider: Provider | None, token: str, now: datetime) -> Claim | None:
        if provider is None:
            return None
        try:
            claim = self._tokens.read_callback(token)
        except TokenInvalid:
            return None
        if claim.provider != provider.name:
            return None
        if now - claim.minted_at > self._token_lifetime and not await self._store.is_open(claim.job_id):
            return None
        return claim

    async def _over_budget(self, provider: Provider, claim: Claim) -> None:
        """Have the provider polled, now and then: a callback that is not kept may have been true."""
        self._count(provider.name, "over_budget", claim.job_id)
        if self._budget.may_hint(claim.job_id):
            await self._intake.hint(claim.job_id)

    async def _refused(self, provider: Provider, claim: Claim, callback: Callback, exc: CallbackRefused) -> None:
        log.warning("callback_refused", provider=provider.name, job=claim.job_id, reason=exc.reason, detail=str(exc))
        self._counter(provider.name, "refused").inc()
        refused = _evidence(provider, claim.job_id, callback, verdict=Verdict.REFUSED, note=f"{exc.reason}: {exc}")
        if not self._refusals.may_keep(callback.peer or "", size_of(refused)):
            self._metrics.refusals_dropped.inc()
            return
        try:
            await self._intake.record(refused)
        except Exception as failed:  # noqa: BLE001 (a refusal that can't be kept is still a refusal)
            log.error("refusal_not_kept", provider=provider.name, job=claim.job_id, error=type(failed).__name__)

    def _answered(self, provider: str, job_id: str, seconds: float, request_id: Callable[[], str]) -> None:
        """Count and log an answer, after all answers of the same commit have been sent."""
        if not self._unlogged:
            asyncio.get_running_loop().call_soon(self._log_recorded)
        self._unlogged.append((provider, job_id, seconds, request_id))

    def _log_recorded(self) -> None:
        unlogged, self._unlogged = self._unlogged, []
        for provider, _, seconds, _ in unlogged:
            self._ack_seconds[provider].observe(seconds)
        for provider, count in CountOf(provider for provider, _, _, _ in unlogged).items():
            self._counter(provider, "recorded").inc(count)
        _RECORDED.write([(provider, job_id, "recorded", name()) for provider, job_id, _, name in unlogged])

    def _count(self, provider: str, verdict: str, job_id: str, **fields: str) -> None:
        self._counter(provider, verdict).inc()
        log.info("callback", provider=provider, job=job_id, verdict=verdict, **fields)

    def _not_recorded(self, provider: str, job_id: str, error: BaseException, **fields: str) -> None:
        log.error("callback_not_recorded", provider=provider, job=job_id, error=type(error).__name__, **fields)
        self._counter(provider, "not_recorded").inc()

    def _counter(self, provider: str, verdict: str) -> Counter:
        found = self._counters.get((provider, verdict))
        if found is None:
            found = self._counters[provider, verdict] = self._metrics.callbacks.labels(provider, verdict)
        return found


def size_of(evidence: Evidence) -> int:
    """Return about how many bytes it takes on disk."""
    return len(evidence.body) + len(evidence.headers_json) + ROW_BYTES


def _evidence(
    provider: Provider,
    job_id: str,
    callback: Callback,
    *,
    verdict: Verdict = Verdict.RECEIVED,
    note: str | None = None,
) -> Evidence:
    return Evidence(
        source=Source.CALLBACK,
        provider=provider.name,
        job_id=job_id,
        received_at=callback.received_at,
        headers_json=headers_to_json(callback.headers),
        body=callback.body,
        verdict=verdict,
        trust=None if verdict is Verdict.REFUSED else provider.trust,
        read_at=callback.received_at if verdict is Verdict.REFUSED else None,
        peer=callback.peer,
        delivery_id=provider.delivery_id(callback),
        note=note,
    )


def _is_whole(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Return whether *body* has the announced length, no matter what is between the sender and this application."""
    for name, value in headers:
        if name == b"content-length":
            return value.isdigit() and len(value) < 20 and int(value) == len(body)
    return True


def _has_length(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Return whether the length of *body* was announced exactly once, in canonical form."""
    announced = [value for name, value in headers if name == b"content-length"]
    return announced == [b"%d" % len(body)]


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [*_PLAIN, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, problem: Problem) -> None:
    headers, body = _problem(problem)
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _problem(problem: Problem) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of the answer."""
    body = json.dumps(problem.to_json()).encode()
    headers = [(b"content-type", b"application/problem+json")]
    headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    return [*headers, (b"content-length", b"%d" % len(body))], body


_OK: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
"""Without a body, whose separate write to the socket would take as long as checking a signature."""
_OK_BODY = {"type": "http.response.body", "body": b""}
