"""
Admission of jobs: the request is checked, its input fetched and inspected, and the job recorded.

Everything that can be known to fail is refused here, before anything is sent. The input of a job is a file of our own,
complete and synced before the job row exists; a crash in between leaves a part file that the next start removes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import httpx
from pydantic import ValidationError

from receiver.domain.ids import new_id
from receiver.domain.jobs import InputImage, Job, KeptImage
from receiver.net.client import DownloadFailed, Outbound
from receiver.net.guard import AddressForbidden, Guard, OutboundError
from receiver.runtime.wakes import Wakes
from receiver.store.blobs import Blobs
from receiver.store.jobs import JobStore, KeyReused
from receiver.upstream.presence import ProviderPresence
from receiver.upstream.slots import ProviderSlot
from receiver.web.job_request import MAX_INPUT_BYTES, JobRequest
from receiver.web.problems import Problem
from submitter.errors import TaskRefused
from submitter.images import inspect
from submitter.provider import Provider, ProviderOptions
from submitter.vocabulary import Picture, State

_MAX_METADATA_BYTES = 16 * 1024
_FETCH_SECONDS = 30.0
_FIELDS = ("provider", "image", "options", "metadata", "notify_url")


class Admissions:
    """Turns requests into queued jobs."""

    def __init__(
        self,
        store: JobStore,
        blobs: Blobs,
        outbound: Outbound,
        slots: Mapping[str, ProviderSlot],
        presence: ProviderPresence,
        *,
        public_url: Callable[[], str | None],
        wakes: Wakes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._outbound = outbound
        self._slots = slots
        self._presence = presence
        self._public_url = public_url
        self._wakes = wakes
        self._clock = clock
        self._same_key: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def admit(
        self, job_request: JobRequest, *, token_id: str, key: str | None
    ) -> tuple[Job, list[KeptImage], bool]:
        """Return the job for a request and whether it is new. If it raises `Problem`, nothing was recorded."""
        try:
            if key is None:
                return await self._admit(job_request, None)
            lock = self._same_key.setdefault((token_id, key), asyncio.Lock())
            async with lock:
                return await self._admit(job_request, (token_id, key, job_request.digest()))
        finally:
            if job_request.part is not None:
                await asyncio.to_thread(job_request.part.unlink, missing_ok=True)

    async def _admit(
        self, job_request: JobRequest, idempotency: tuple[str, str, str] | None
    ) -> tuple[Job, list[KeptImage], bool]:
        if idempotency is not None and (known := await self._known(idempotency)) is not None:
            return (*known, False)
        provider, options = self._what(job_request.document)
        await self._check_key(provider.name)
        metadata = _metadata(job_request.document.get("metadata"))
        notify_url = await self._notify_url(job_request.document.get("notify_url"))
        part = job_request.part or await self._fetch(job_request.url or "")
        try:
            picture = await asyncio.to_thread(self._check, provider, options, part, job_request.url)
            job_id = new_id("job")
            now = self._clock()
            job = Job(
                id=job_id,
                provider=provider.name,
                state=State.QUEUED,
                version=1,
                created_at=now,
                options=options.model_dump(mode="json", exclude_unset=True),
                metadata=metadata,
                notify_url=notify_url,
                input_name=await self._blobs.keep_input(part, job_id),
                input_url=job_request.url,
                input=InputImage(job_request.file_name, picture.width, picture.height, picture.size),
                retry_at=now,
            )
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        return await self._record(job, idempotency)

    async def _record(self, job: Job, idempotency: tuple[str, str, str] | None) -> tuple[Job, list[KeptImage], bool]:
        """Record a job whose input is kept. If its key is known by now, remove the input."""
        try:
            recorded, new = await self._store.add_job(job, idempotency=idempotency)
        except KeyReused as exc:
            await self._blobs.drop_input(job.input_name)
            raise _reused(exc.job_id) from exc
        if not new:
            await self._blobs.drop_input(job.input_name)
            found = await self._store.job(recorded.id)
            return (*found, False) if found is not None else (recorded, [], False)
        self._wakes.jobs_queued()
        return recorded, [], True

    async def _known(self, idempotency: tuple[str, str, str]) -> tuple[Job, list[KeptImage]] | None:
        token_id, key, digest = idempotency
        known = await self._store.job_of_key(token_id, key, self._clock())
        if known is None:
            return None
        if known[0] != digest:
            raise _reused(known[1])
        return await self._store.job(known[1])

    async def resubmitted(self, job: Job, *, token_id: str, key: str | None) -> tuple[Job, list[KeptImage]] | None:
        """Return the job that *key* made from *job* before, if any."""
        return None if key is None else await self._known((token_id, key, _again_digest(job)))

    async def resubmit(self, job: Job, *, token_id: str, key: str | None) -> tuple[Job, list[KeptImage], bool]:
        """Return a job with the input and options of *job*, and whether it is new: a known *key* returns its job."""
        await self._check_key(job.provider)
        now = self._clock()
        job_id = new_id("job")
        try:
            name = await self._blobs.copy_input(job.input_name, job_id)
        except FileNotFoundError as exc:
            raise Problem(
                409,
                "input_gone",
                "the input of that job is not kept any more",
                remedy="POST /v1/jobs with the image again",
            ) from exc
        again = Job(
            id=job_id,
            provider=job.provider,
            state=State.QUEUED,
            version=1,
            created_at=now,
            options=job.options,
            metadata=job.metadata,
            notify_url=job.notify_url,
            input_name=name,
            input_url=job.input_url,
            input=job.input,
            retry_at=now,
            resubmit_of=job.id,
        )
        return await self._record(again, None if key is None else (token_id, key, _again_digest(job)))

    # --- Checks -----------------------------------------------------------------------------------------------------

    def _what(self, document: Mapping[str, Any]) -> tuple[Provider, ProviderOptions]:
        unknown = sorted(set(document) - set(_FIELDS))
        if unknown:
            raise Problem(
                422,
                "unknown_field",
                f"there is no field {unknown[0][:60]!r}",
                field=unknown[0][:60],
                remedy=f"the fields are {', '.join(_FIELDS)}",
            )
        name = document.get("provider")
        if not isinstance(name, str) or name not in self._slots:
            raise Problem(
                422,
                "unknown_provider",
                "provider must name one of the providers",
                field="provider",
                remedy=f"use one of {', '.join(self._slots)}",
            )
        provider = self._slots[name].provider
        options = document.get("options")
        if options is None:
            options = {}
        if not isinstance(options, dict):
            raise Problem(
                422,
                "invalid_options",
                "options must be an object",
                field="options",
                remedy="send an object of option names and values; GET /v1/providers lists them",
            )
        try:
            return provider, provider.Options.model_validate(options)
        except ValidationError as exc:
            raise _bad_option(exc, provider) from exc

    async def _check_key(self, provider: str) -> None:
        """Refuse what nobody can send: for good if workers have other keys, for now if none has started yet."""
        has_key = await self._presence.has_key(provider)
        if has_key is None:
            raise Problem(
                503,
                "no_worker",
                "no process that submits jobs has started yet",
                remedy="try again later; `receiver work` holds the providers' keys",
                headers={"retry-after": "2"},
            )
        if not has_key:
            raise _no_key(provider)

    def _check(self, provider: Provider, options: ProviderOptions, part: Path, url: str | None) -> Picture:
        try:
            picture = inspect(part, url=url)
            public_url = self._public_url()
            option = provider.callback_option(options)
            if public_url is None and (option or (provider.wants_url and url is None)):
                raise Problem(
                    422,
                    "public_url_required",
                    f"{provider.title} must be able to reach this receiver for that",
                    field=f"options.{option}" if option else "image",
                    remedy="set RECEIVER_PUBLIC_URL" + ("" if option else ", or give the image by a public URL"),
                )
            shown = f"{public_url}/inputs/x" if provider.wants_url and public_url else url
            provider.check(replace(picture, url=shown), options)
            return picture
        except TaskRefused as exc:
            raise _unusable(exc) from exc

    async def _notify_url(self, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise Problem(
                422,
                "invalid_notify_url",
                "notify_url must be a URL",
                field="notify_url",
                remedy="send an https URL, or leave it out",
            )
        await check_target(self._outbound.guard, value, field="notify_url", code="invalid_notify_url")
        return value

    async def _fetch(self, url: str) -> Path:
        part = self._blobs.new_part()
        try:
            with await asyncio.to_thread(part.open, "wb") as sink:
                await self._outbound.download(url, sink, max_bytes=MAX_INPUT_BYTES, timeout_seconds=_FETCH_SECONDS)
        except BaseException as exc:
            await asyncio.to_thread(part.unlink, missing_ok=True)
            if not isinstance(exc, OutboundError):
                raise
            code = "image_unreachable" if isinstance(exc, DownloadFailed) else "image_url_refused"
            found, remedy = str(exc), "give an https URL that answers 200 with the image, or send the image itself"
            if isinstance(exc, AddressForbidden):
                found, remedy = exc.found, f"send the image itself, or {exc.remedy}"
            detail = f"the image could not be fetched: {found}"
            raise Problem(422, code, detail, field="image.url", remedy=remedy) from exc
        return part


async def check_target(guard: Guard, url: str, *, field: str, code: str) -> None:
    """Refuse a subscriber's URL that can never be called; a name that doesn't resolve at present passes."""
    try:
        target = guard.check_url(url)
        await guard.resolve(
            target.host, target.port or (443 if target.scheme == "https" else 80), encrypted=target.scheme == "https"
        )
    except AddressForbidden as exc:
        raise Problem(422, code, exc.found, field=field, remedy=_listen_instead(url) or exc.remedy) from exc
    except OutboundError as exc:
        if exc.permanent:
            remedy = _listen_instead(url) or "use a public https URL"
            raise Problem(422, code, str(exc), field=field, remedy=remedy) from exc


def _listen_instead(url: str) -> str | None:
    """Return the remedy for a URL on this machine, whose author probably wants `receiver listen`."""
    try:
        host = httpx.URL(url).host
    except (httpx.InvalidURL, ValueError):
        return None
    if host not in ("localhost", "127.0.0.1", "::1") and not host.endswith(".localhost"):
        return None
    return (
        "for an application on your own machine, `receiver listen` forwards events to it: receiver listen "
        "http://localhost:3000/hook; or open its network with RECEIVER_ALLOW_NETWORKS"
    )


def _metadata(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Problem(
            422,
            "invalid_metadata",
            "metadata must be an object",
            field="metadata",
            remedy="send a small JSON object, or leave it out",
        )
    if len(json.dumps(value)) > _MAX_METADATA_BYTES:
        raise Problem(
            422,
            "invalid_metadata",
            f"metadata is larger than {_MAX_METADATA_BYTES} bytes",
            field="metadata",
            remedy="send a small JSON object, or leave it out",
        )
    return value


def _bad_option(exc: ValidationError, provider: Provider) -> Problem:
    error = exc.errors(include_url=False, include_input=False)[0]
    path = [part for part in error["loc"] if isinstance(part, int) or re.fullmatch(r"[A-Za-z0-9_]{1,64}", str(part))]
    name = str(error["loc"][0]) if error["loc"] else ""
    field = ".".join(["options", *(str(part) for part in path)])
    fields = provider.Options.model_fields
    if error["type"] == "extra_forbidden":
        detail = f"{provider.name} has no option {name[:60]!r}"
        remedy = f"use one of {', '.join(fields)}; unknown fields can go into options.passthrough"
        return Problem(422, "unknown_option", detail, field=field, remedy=remedy)
    described = fields[name].description if name in fields else None
    return Problem(
        422,
        "invalid_option",
        f"{field}: {error['msg']}",
        field=field,
        remedy=described or "GET /v1/providers shows what it takes",
    )


def _unusable(exc: TaskRefused) -> Problem:
    """Return the answer to a task that its provider would not take; what to send instead is said once."""
    remedy = _REMEDIES.get(exc.code)
    detail = str(exc) if remedy is None else str(exc).partition("; send ")[0]
    return Problem(422, exc.code, detail, field=exc.field, remedy=remedy or "change what the detail names")


_REMEDIES = {
    "not_an_image": "send a JPEG, PNG or WebP file",
    "image_cut_off": "send the whole file",
    "image_too_large": "make the image smaller, or use a provider with a larger limit",
}


def _no_key(name: str) -> Problem:
    return Problem(
        422,
        "provider_not_configured",
        f"there is no API key for {name}",
        field="provider",
        remedy=f"set {name.upper()}_API_KEY and start the receiver again",
    )


def _again_digest(job: Job) -> str:
    """Return the content digest of a key for a request to send *job* again."""
    return hashlib.sha256(f"resubmit {job.id}".encode()).hexdigest()


def _reused(job_id: str) -> Problem:
    return Problem(
        409,
        "idempotency_key_reused",
        "this Idempotency-Key came before with other content",
        field="Idempotency-Key",
        remedy="use a new key for a new job",
        job_id=job_id,
    )
