"""Jobs: `/v1/jobs`, behind a bearer token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from receiver.domain.jobs import Job, KeptImage, lost_reason
from receiver.runtime.wakes import Wakes
from receiver.store.blobs import Blobs
from receiver.store.job_list import JobFilter
from receiver.store.jobs import JobStore
from receiver.upstream.pauses import Pauses
from receiver.upstream.slots import ProviderSlot
from receiver.web.admission import Admissions
from receiver.web.auth import Bearer
from receiver.web.body import small_json
from receiver.web.evidence_page import evidence_page, page_as_json
from receiver.web.job_request import JobRequest
from receiver.web.job_upload import Uploads
from receiver.web.problems import Problem, no_such_job
from receiver.web.query_params import chosen_of, cursor_of, known_only, limit_of, moment_param, place_of, words_of
from submitter.vocabulary import State

_ASKED_APART_SECONDS = 5.0
"""The pause between polls of a job that people ask for; where the provider's own interval is shorter, that one."""


@dataclass(frozen=True, slots=True)
class JobPresenter:
    """Presents jobs in answers: with addresses of this service, and whether their provider is paused."""

    base_url: Callable[[], str]
    pauses: Pauses

    def to_json(self, job: Job, images: Sequence[KeptImage]) -> dict[str, Any]:
        return job.to_json(images, base_url=self.base_url(), pause=self.pauses.of(job.provider))

    def location(self, job: Job) -> dict[str, str]:
        """Return the header with the job's address."""
        return {"location": f"{self.base_url()}/v1/jobs/{job.id}"}


@dataclass(frozen=True, slots=True)
class JobsApi:
    """`/v1/jobs`: submits, shows, cancels, resubmits and polls jobs."""

    store: JobStore
    admissions: Admissions
    uploads: Uploads
    blobs: Blobs
    slots: Mapping[str, ProviderSlot]
    presenter: JobPresenter
    wakes: Wakes
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def routes(self, bearer: Bearer) -> list[Route]:
        guard = bearer.guard
        return [
            Route("/v1/jobs", guard(self.create), methods=["POST"]),
            Route("/v1/jobs", guard(self.list), methods=["GET"]),
            Route("/v1/lost", guard(self.list_lost), methods=["GET"]),
            Route("/v1/jobs/{id}", guard(self.show), methods=["GET"]),
            Route("/v1/jobs/{id}/evidence", guard(self.evidence), methods=["GET"]),
            Route("/v1/jobs/{id}/cancel", guard(self.cancel), methods=["POST"]),
            Route("/v1/jobs/{id}/resubmit", guard(self.resubmit), methods=["POST"]),
            Route("/v1/jobs/{id}/poll", guard(self.poll_now), methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """`POST /v1/jobs`."""
        key = _idempotency_key(request)
        job_request = await self._job_request(request)
        job, images, new = await self.admissions.admit(job_request, token_id=request.state.token_id, key=key)
        return self._answer(job, images, new=new)

    async def list(self, request: Request) -> Response:
        """`GET /v1/jobs?state=&provider=&since=&until=&q=&cursor=&limit=`, newest first."""
        known_only(request, "state", "provider", "since", "until", "q", "cursor", "limit")
        page = await self.store.page(
            job_filter(request, tuple(self.slots)), before=place_of(request, "job"), limit=limit_of(request)
        )
        items = [self.presenter.to_json(job, images) for job, images in page.jobs]
        return JSONResponse({"items": items, "next": page.next})

    async def list_lost(self, request: Request) -> Response:
        """`GET /v1/lost?cursor=&limit=`: jobs whose paid results never reached us, and why."""
        known_only(request, "cursor", "limit")
        limit = limit_of(request)
        found = await self.store.jobs(lost=True, before=place_of(request, "job"), limit=limit + 1)
        items = [
            {**self.presenter.to_json(job, images), "reason": lost_reason(job, images)} for job, images in found[:limit]
        ]
        return JSONResponse({"items": items, "next": items[-1]["id"] if len(found) > limit else None})

    async def show(self, request: Request) -> Response:
        return JSONResponse(self.presenter.to_json(*await self._found(request)))

    async def evidence(self, request: Request) -> Response:
        known_only(request, "cursor", "limit")
        job, _ = await self._found(request)
        limit = limit_of(request)
        after = cursor_of(request)
        page, following = await evidence_page(self.store.evidence, job.id, after=after, limit=limit)
        keys = [slot.provider.api_key for slot in self.slots.values() if slot.configured]
        text = page_as_json(page, following, blobs=self.blobs, keys=keys)
        return StreamingResponse(text, media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        job, _ = await self._found(request)
        abandon = _flag(await small_json(request), "abandon")
        if not await self.store.cancel(job.id, self.clock(), abandon=abandon):
            job, _ = await self._found(request)
            raise _not_cancelable(job)
        self.wakes.events_written()
        return JSONResponse(self.presenter.to_json(*await self._found(request)))

    async def resubmit(self, request: Request) -> Response:
        key, token_id = _idempotency_key(request), request.state.token_id
        job, _ = await self._found(request)
        may_pay_twice = _flag(await small_json(request), "may_pay_twice")
        if (known := await self.admissions.resubmitted(job, token_id=token_id, key=key)) is not None:
            return self._answer(*known, new=False)
        if job.state not in (State.FAILED, State.EXPIRED, State.CANCELED, State.UNCONFIRMED):
            done = job.state is State.SUCCEEDED
            remedy = "POST /v1/jobs for a new one" if done else "wait for its end, or cancel it first"
            raise Problem(409, "not_resubmittable", f"the job is {job.state}", remedy=remedy)
        if job.state is State.UNCONFIRMED and not may_pay_twice:
            raise Problem(
                409,
                "may_pay_twice",
                "the job may be running and billed; a second one may be billed too",
                field="may_pay_twice",
                remedy='send {"may_pay_twice": true} if that is meant',
            )
        again, images, new = await self.admissions.resubmit(job, token_id=token_id, key=key)
        return self._answer(again, images, new=new)

    async def poll_now(self, request: Request) -> Response:
        """`POST /v1/jobs/{id}/poll`: poll the job now, or a few seconds after its last poll."""
        job, _ = await self._found(request)
        slot = self.slots[job.provider]
        if not slot.provider.pollable:
            raise Problem(409, "not_pollable", f"{job.provider} has no status call", remedy="wait for its answer")
        apart = min(slot.timing.interval, _ASKED_APART_SECONDS)
        if not await self.store.leases.poll_now(job.id, self.clock(), apart_seconds=apart):
            raise Problem(
                409,
                "nothing_to_poll",
                _nothing_to_poll(job),
                remedy="GET the job: its `state` and `waiting_for` show where it stands",
            )
        self.wakes.poller.set()
        return JSONResponse(self.presenter.to_json(*await self._found(request)), 202)

    # --- Parts ------------------------------------------------------------------------------------------------------

    def _answer(self, job: Job, images: Sequence[KeptImage], *, new: bool) -> Response:
        """Respond to a request for a job, which may have been made before."""
        headers = self.presenter.location(job)
        return JSONResponse(self.presenter.to_json(job, images), 202 if new else 200, headers=headers)

    async def _found(self, request: Request) -> tuple[Job, Sequence[KeptImage]]:
        found = await self.store.job(request.path_params["id"])
        if found is None:
            raise no_such_job()
        return found

    async def _job_request(self, request: Request) -> JobRequest:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == "multipart/form-data":
            return await self.uploads.from_multipart(request)
        if content_type in ("application/json", ""):
            return await self.uploads.from_json(request)
        raise Problem(
            415,
            "unsupported_media_type",
            "send application/json or multipart/form-data",
            field="content-type",
            remedy="set Content-Type to one of them",
        )


def job_filter(request: Request, providers: Sequence[str]) -> JobFilter:
    """Read the filter from the query of a list of jobs; *providers* are the known ones."""
    return JobFilter(
        states=chosen_of(request, "state", tuple(State)),
        providers=chosen_of(request, "provider", providers),
        since=moment_param(request, "since"),
        until=moment_param(request, "until"),
        text=words_of(request, "q"),
    )


def _flag(document: Mapping[str, Any], name: str) -> bool:
    """Return the field *name*, which is false if it is missing or null."""
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise Problem(422, "invalid_field", f"{name} must be true or false", field=name, remedy="send true or false")
    return value is True


def _nothing_to_poll(job: Job) -> str:
    if job.state.terminal and job.remote_id is not None:
        return f"the job is {job.state} already, and no image is missing"
    if job.state.terminal:
        return f"the job is {job.state}, and the provider gave it no task id"
    return "the provider has given the job no task id yet"


def _not_cancelable(job: Job) -> Problem:
    if job.state.terminal:
        return Problem(
            409,
            "already_ended",
            f"the job is {job.state} already",
            remedy="there is nothing to cancel",
        )
    return Problem(
        409,
        "already_sent",
        "the job was sent to its provider, which has no way to cancel it",
        remedy='send {"abandon": true} to stop waiting for it; it may still be billed',
    )


def _idempotency_key(request: Request) -> str | None:
    keys = {key.strip(" \t") for key in request.headers.getlist("idempotency-key")}  # white space is not part of it
    if len(keys) > 1:
        raise Problem(
            422,
            "invalid_idempotency_key",
            "the request has several Idempotency-Key headers",
            field="Idempotency-Key",
            remedy="send one",
        )
    key = next(iter(keys), None)
    if key is not None and not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise Problem(
            422,
            "invalid_idempotency_key",
            "Idempotency-Key must be 1 to 255 printable ASCII characters",
            field="Idempotency-Key",
            remedy="use a UUID, for example",
        )
    return key
