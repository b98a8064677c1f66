"""The JSON API of jobs and providers, under `/v1`, behind a bearer token."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from receiver.domain.jobs import Job, KeptImage, iso
from receiver.domain.lifecycle import Timing
from receiver.domain.redaction import evidence_to_json
from receiver.domain.tokens import TokenInvalid, Tokens
from receiver.store.blobs import Blobs
from receiver.store.jobs import JobStore
from receiver.upstream.intake import Intake
from receiver.upstream.pauses import Pauses
from receiver.upstream.statistics import ProviderStatistics
from receiver.web.admission import Admissions
from receiver.web.job_request import JobRequest, job_request_from_json, parse_document
from receiver.web.job_upload import Uploads
from receiver.web.problems import Problem
from receiver.web.query_params import chosen_of, cursor_of, known_only, limit_of, place_of
from submitter.provider import Provider
from submitter.vocabulary import State

_MAX_JSON_BYTES = 96 * 1024 * 1024
_MAX_SMALL_JSON_BYTES = 64 * 1024
Handler = Callable[[Request], Awaitable[Response]]


class QueueSeconds(Protocol):
    """In how many seconds a provider's queue is sent, if that can be known."""

    def __call__(self, name: str, length: int, *, call_seconds: float | None) -> float | None: ...


class Bearer:
    """Who may call `/v1`. Compares in constant time; tokens are named by a digest, never by themselves."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [token.encode() for token in tokens]

    def check(self, request: Request) -> str:
        """The id of the caller's token, or `Problem` 401."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        candidate = given.strip().encode("utf-8", "replace")
        matches = [token for token in self._tokens if hmac.compare_digest(token, candidate)]
        if scheme.lower() != "bearer" or not matches:
            raise Problem(
                401,
                "unauthorized",
                "a bearer token is needed",
                remedy="send `Authorization: Bearer TOKEN` with one of RECEIVER_API_TOKENS",
                headers={"www-authenticate": "Bearer"},
            )
        return hashlib.sha256(matches[0]).hexdigest()[:16]

    def guard(self, handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(request: Request) -> Response:
            request.state.token_id = self.check(request)
            return await handler(request)

        return guarded


@dataclass(frozen=True, slots=True)
class JobsApi:
    """Handlers; what they need is handed in."""

    store: JobStore
    intake: Intake
    admissions: Admissions
    providers: Mapping[str, Provider]
    configured: frozenset[str]
    queue_seconds: QueueSeconds
    pauses: Pauses
    statistics: ProviderStatistics
    tokens: Tokens
    blobs: Blobs
    uploads: Uploads
    base_url: Callable[[], str]
    timing_of: Callable[[str], Timing]
    poll: Callable[[], None]
    submit: Callable[[], None]
    on_events: Callable[[], None]
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def routes(self, bearer: Bearer) -> list[Route]:
        guard = bearer.guard
        return [
            Route("/v1/jobs", guard(self.create), methods=["POST"]),
            Route("/v1/jobs", guard(self.list), methods=["GET"]),
            Route("/v1/jobs/{id}", guard(self.show), methods=["GET"]),
            Route("/v1/jobs/{id}/evidence", guard(self.evidence), methods=["GET"]),
            Route("/v1/jobs/{id}/images/{n}", guard(self.image), methods=["GET"]),
            Route("/v1/jobs/{id}/cancel", guard(self.cancel), methods=["POST"]),
            Route("/v1/jobs/{id}/resubmit", guard(self.resubmit), methods=["POST"]),
            Route("/v1/jobs/{id}/poll", guard(self.poll_now), methods=["POST"]),
            Route("/v1/providers", guard(self.list_providers), methods=["GET"]),
            Route("/v1/providers/{name}/resume", guard(self.resume), methods=["POST"]),
            Route("/inputs/{token}", self.input, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        """`POST /v1/jobs`."""
        key = _idempotency_key(request)
        job_request = await self._job_request(request)
        job, images, new = await self.admissions.admit(job_request, token_id=request.state.token_id, key=key)
        return JSONResponse(self._job(job, images), 202 if new else 200, headers=self._location(job))

    async def list(self, request: Request) -> Response:
        """`GET /v1/jobs?state=&provider=&cursor=&limit=`."""
        known_only(request, "state", "provider", "cursor", "limit")
        limit = limit_of(request)
        found = await self.store.jobs(
            states=chosen_of(request, "state", tuple(State)),
            providers=chosen_of(request, "provider", tuple(self.providers)),
            before=place_of(request, "job"),
            limit=limit + 1,
        )
        page = found[:limit]
        following = page[-1][0].id if len(found) > limit else None
        return JSONResponse({"items": [self._job(job, images) for job, images in page], "next": following})

    async def show(self, request: Request) -> Response:
        return JSONResponse(self._job(*await self._found(request)))

    async def evidence(self, request: Request) -> Response:
        known_only(request, "cursor", "limit")
        job, _ = await self._found(request)
        limit = limit_of(request)
        after = cursor_of(request)
        found = await self.store.evidence.of(job.id, after=after, limit=limit + 1)
        page = found[:limit]
        following = str(page[-1].id) if len(found) > limit else None
        keys = [self.providers[name].api_key for name in self.configured]
        return JSONResponse(
            {
                "items": [evidence_to_json(one, keys) for one in [await self.blobs.whole(each) for each in page]],
                "next": following,
            }
        )

    async def image(self, request: Request) -> Response:
        job, images = await self._found(request)
        given = request.path_params["n"]
        n = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else -1
        image = next((one for one in images if one.n == n), None)
        if image is None:
            raise Problem(
                404,
                "no_such_image",
                f"the job has {len(images)} images",
                field="n",
                remedy="count from 0; a job without images has none yet, or failed",
            )
        if not image.kept:
            raise Problem(
                404,
                "image_not_kept",
                "our copy of this image is not there" + (" yet" if image.state == "wanted" else " and will not come"),
                remedy="come again, or use source_url while it lives",
            )
        headers = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=31536000, immutable"}
        path = self.blobs.image_path(job.id, n)
        return FileResponse(path, media_type=image.content_type or "application/octet-stream", headers=headers)

    async def input(self, request: Request) -> Response:
        """`GET|HEAD /inputs/{token}`: for providers that take a URL only."""
        try:
            claim = self.tokens.read_input(request.path_params["token"])
        except TokenInvalid:
            claim = None
        found = await self.store.job(claim.job_id) if claim else None
        if found is None or found[0].state.terminal:
            raise Problem(
                404, "no_such_input", "there is no such input", remedy="inputs are served as long as their job is open"
            )
        job = found[0]
        path = self.blobs.input_path(job.input_name)
        content_type = await asyncio.to_thread(self.blobs.content_type, path)
        headers = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
        return FileResponse(path, media_type=content_type, headers=headers)

    async def cancel(self, request: Request) -> Response:
        job, _ = await self._found(request)
        asked = await small_json(request)
        abandon = asked.get("abandon", False)
        if not isinstance(abandon, bool):
            raise Problem(
                422, "invalid_field", "abandon must be true or false", field="abandon", remedy="send true or false"
            )
        if job.state.terminal:
            raise Problem(
                409,
                "already_ended",
                f"the job is {job.state} already",
                remedy="POST /v1/jobs/{id}/resubmit makes a new job of it",
            )
        if job.state is not State.QUEUED and not abandon:
            raise Problem(
                409,
                "already_sent",
                "the job was sent to its provider, which has no way to cancel it",
                remedy='send {"abandon": true} to stop waiting for it; it may be billed all the same',
            )
        return await self._canceled(job.id, abandon=abandon)

    async def _canceled(self, job_id: str, *, abandon: bool) -> Response:
        canceled = await self.store.cancel(job_id, self.clock(), abandon=abandon)
        if not canceled:
            found = await self.store.job(job_id)
            assert found is not None
            if found[0].state.terminal:
                raise Problem(
                    409,
                    "already_ended",
                    f"the job is {found[0].state} already",
                    remedy="POST /v1/jobs/{id}/resubmit makes a new job of it",
                )
            raise Problem(
                409,
                "already_sent",
                "the job was sent to its provider just now",
                remedy='send {"abandon": true} to stop waiting for it; it may be billed all the same',
            )
        self.on_events()
        found = await self.store.job(job_id)
        assert found is not None
        return JSONResponse(self._job(*found))

    async def resubmit(self, request: Request) -> Response:
        key, token_id = _idempotency_key(request), request.state.token_id
        job, _ = await self._found(request)
        asked = await small_json(request)
        if (known := await self.admissions.resubmitted(job, token_id=token_id, key=key)) is not None:
            return JSONResponse(self._job(*known), 200, headers=self._location(known[0]))
        if job.state not in (State.FAILED, State.EXPIRED, State.CANCELED, State.UNCONFIRMED):
            raise Problem(409, "not_resubmittable", f"the job is {job.state}", remedy="wait for its end")
        if job.state is State.UNCONFIRMED and asked.get("may_pay_twice") is not True:
            raise Problem(
                409,
                "may_pay_twice",
                "the job may be running and billed; a second one may be billed too",
                field="may_pay_twice",
                remedy='send {"may_pay_twice": true} if that is meant',
            )
        again, images, new = await self.admissions.resubmit(job, token_id=token_id, key=key)
        return JSONResponse(self._job(again, images), 202 if new else 200, headers=self._location(again))

    def _location(self, job: Job) -> dict[str, str]:
        return {"location": f"{self.base_url()}/v1/jobs/{job.id}"}

    async def poll_now(self, request: Request) -> Response:
        """`POST /v1/jobs/{id}/poll`: an operator's poll, now."""
        job, _ = await self._found(request)
        if not self.providers[job.provider].pollable:
            raise Problem(409, "not_pollable", f"{job.provider} has no status call", remedy="wait for its answer")
        if not await self.store.leases.poll_now(
            job.id, self.clock(), interval_seconds=self.timing_of(job.provider).interval
        ):
            raise Problem(
                409,
                "nothing_to_poll",
                "the job has no task id, or has ended",
                remedy="GET the job: its state says what it waits for",
            )
        self.poll()
        return JSONResponse(self._job(*await self._found(request)), 202)

    async def list_providers(self, request: Request) -> Response:
        queued = await self.store.queue_lengths()
        spend = await self.statistics.spend(now=self.clock())
        items = []
        for name, provider in self.providers.items():
            pause = self.pauses.of(name)
            length = queued.get(name, 0)
            health = await self.statistics.health(name)
            # A call to a synchronous provider lasts as long as its task.
            took = None if provider.pollable else health.turnaround_seconds
            seconds = self.queue_seconds(name, length, call_seconds=took)
            done_at = None if seconds is None else iso(self.clock() + timedelta(seconds=seconds))
            items.append(
                {
                    "name": name,
                    "title": provider.title,
                    "configured": name in self.configured,
                    "capabilities": {
                        "callbacks": provider.callbacks,
                        "pollable": provider.pollable,
                        "wants_url": provider.wants_url,
                        "trust": None if provider.trust is None else provider.trust.value,
                    },
                    "options": provider.Options.model_json_schema(),
                    "paused": None if pause is None else pause.to_json(),
                    "queue": {
                        "length": length,
                        "done_in_seconds": None if seconds is None else round(seconds, 3),
                        "done_at": done_at,
                    },
                    "health": health.to_json(),
                    "spend": spend.get(name, []),
                }
            )
        return JSONResponse({"items": items, "next": None})

    async def resume(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.providers:
            raise Problem(
                404,
                "unknown_provider",
                "there is no such provider",
                field="name",
                remedy="GET /v1/providers lists them",
            )
        resumed = await self.pauses.resume(name, self.clock())
        self.on_events()
        self.submit()
        return JSONResponse({"name": name, "resumed": resumed, "paused": None})

    # --- Parts ------------------------------------------------------------------------------------------------------

    def _job(self, job: Job, images: Sequence[KeptImage]) -> dict[str, Any]:
        return job.to_json(images, base_url=self.base_url())

    async def _found(self, request: Request) -> tuple[Job, Sequence[KeptImage]]:
        found = await self.store.job(request.path_params["id"])
        if found is None:
            raise Problem(404, "no_such_job", "there is no such job", field="id", remedy="GET /v1/jobs lists them")
        return found

    async def _job_request(self, request: Request) -> JobRequest:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == "multipart/form-data":
            return await self.uploads.job_request(request)
        if content_type in ("application/json", ""):
            body = await read_body(request, limit=_MAX_JSON_BYTES)
            return await asyncio.to_thread(job_request_from_json, body, self.blobs)
        raise Problem(
            415,
            "unsupported_media_type",
            "send application/json or multipart/form-data",
            field="content-type",
            remedy="set Content-Type to one of them",
        )


async def read_body(request: Request, *, limit: int) -> bytes:
    """The request's body, or `Problem` 413 once it is larger than *limit*; the rest is read and dropped."""
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
    except ClientDisconnect as exc:
        raise Problem(400, "disconnected", "the body was cut", remedy="send the request again, whole") from exc
    if size > limit:
        raise Problem(413, "too_large", f"the body may have at most {limit} bytes", remedy="send less")
    return b"".join(parts)


async def small_json(request: Request) -> dict[str, Any]:
    """An optional small JSON object."""
    body = await read_body(request, limit=_MAX_SMALL_JSON_BYTES)
    return parse_document(body) if body.strip() else {}


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None:
        key = key.strip(" \t")  # white space around a header's value is no part of it
    if key is not None and not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise Problem(
            422,
            "invalid_idempotency_key",
            "Idempotency-Key must be 1 to 255 printable ASCII characters",
            field="Idempotency-Key",
            remedy="use a UUID, for example",
        )
    return key
