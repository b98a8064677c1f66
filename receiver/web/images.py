"""
Pictures over HTTP: our copies of results and inputs and their thumbnails, protected by a bearer token, and the inputs
that providers fetch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from weakref import WeakValueDictionary

import structlog
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from receiver.domain.jobs import Job, KeptImage
from receiver.domain.tokens import TokenInvalid, Tokens
from receiver.runtime.thumbnails import NoThumbnail, Thumbnails
from receiver.store.blobs import Blobs
from receiver.store.jobs import JobStore
from receiver.web.auth import Bearer
from receiver.web.files import file_response, object_response
from receiver.web.problems import Problem, no_such_job
from submitter.image_files import SUFFIXES

log = structlog.get_logger("receiver.images")

_SIGNED = timedelta(minutes=5)
_SUFFIXES = tuple(SUFFIXES.values())
_UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class ImagesApi:
    """`/v1/jobs/{id}/images/{n}`, `/v1/jobs/{id}/input`, their thumbnails, and `/inputs/{token}`."""

    store: JobStore
    blobs: Blobs
    tokens: Tokens
    redirect: bool = False
    """Redirect to the object store, by a signed link, instead of serving its images through us."""
    thumbnails: Thumbnails = field(default_factory=Thumbnails)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _making: WeakValueDictionary[Path, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    def routes(self, bearer: Bearer) -> list[Route]:
        return [
            Route("/v1/jobs/{id}/images/{n}", bearer.guard(self.image), methods=["GET"]),
            Route("/v1/jobs/{id}/images/{n}/thumbnail", bearer.guard(self.image_thumbnail), methods=["GET"]),
            Route("/v1/jobs/{id}/input", bearer.guard(self.job_input), methods=["GET"]),
            Route("/v1/jobs/{id}/input/thumbnail", bearer.guard(self.input_thumbnail), methods=["GET"]),
            Route("/inputs/{token}", self.input, methods=["GET"]),
            Route("/inputs/{token}/{name}", self.input, methods=["GET"], include_in_schema=False),
        ]

    async def image(self, request: Request) -> Response:
        """`GET /v1/jobs/{id}/images/{n}`, with ranges; its ETag is its digest."""
        job, image = await self._image(request)
        try:
            return await self._copy(request, job, image)
        except FileNotFoundError as exc:
            raise await self._gone(job, image) from exc

    async def image_thumbnail(self, request: Request) -> Response:
        """`GET /v1/jobs/{id}/images/{n}/thumbnail`: a WEBP, made on the first request."""
        job, image = await self._image(request)
        try:
            path = await self._thumbnail(job.id, image.n, self.blobs.image_file(job.id, image.n))
        except FileNotFoundError as exc:
            raise await self._gone(job, image) from exc
        tag = image.sha256 and f"{image.sha256}-thumbnail"
        return await file_response(request, path, "image/webp", name=f"{job.id}-{image.n}-thumbnail.webp", tag=tag)

    async def job_input(self, request: Request) -> Response:
        """`GET /v1/jobs/{id}/input`, as long as it is kept."""
        job, path = await self._input(request)
        content_type = await asyncio.to_thread(self.blobs.content_type, path)
        name = f"{job.id}-input{SUFFIXES.get(content_type, '')}"
        return await file_response(request, path, content_type, name=name, tag=f"{job.id}-input")

    async def input_thumbnail(self, request: Request) -> Response:
        job, original = await self._input(request)
        path = await self._thumbnail(job.id, None, nullcontext(original))
        return await file_response(
            request, path, "image/webp", name=f"{job.id}-input-thumbnail.webp", tag=f"{job.id}-thumbnail"
        )

    async def input(self, request: Request) -> Response:
        """`GET|HEAD /inputs/{token}`, with any suffix or name after it: for providers that take only a URL."""
        token = request.path_params["token"]
        while token.endswith(_SUFFIXES):
            token = token.rpartition(".")[0]
        try:
            claim = self.tokens.read_input(token)
        except TokenInvalid:
            claim = None
        found = await self.store.job(claim.job_id) if claim else None
        if found is None or found[0].state.terminal:
            raise Problem(
                404, "no_such_input", "there is no such input", remedy="inputs are served as long as their job is open"
            )
        job = found[0]
        try:
            path = await self.blobs.input_file(job.input_name)
        except FileNotFoundError as exc:
            raise _input_gone() from exc
        content_type = await asyncio.to_thread(self.blobs.content_type, path)
        headers = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
        return FileResponse(path, media_type=content_type, headers=headers)

    # --- Parts ------------------------------------------------------------------------------------------------------

    async def _copy(self, request: Request, job: Job, image: KeptImage) -> Response:
        """Respond with our copy of *image*, or a redirect to it. Raises FileNotFoundError."""
        content_type = image.content_type or _UNKNOWN_TYPE
        name = f"{job.id}-{image.n}{SUFFIXES.get(content_type, '')}"
        key = await self.blobs.image_key(job.id, image.n)
        if self.blobs.objects is None or key is None:
            path = self.blobs.image_path(job.id, image.n)
            return await file_response(request, path, content_type, name=name, tag=image.sha256)
        if self.redirect:
            await self.blobs.objects.size(key)
            url = await self.blobs.objects.signed_url(key, lifetime=_SIGNED)
            return RedirectResponse(url, 307, headers={"cache-control": "no-store"})
        return await object_response(request, self.blobs.objects, key, content_type, name=name, tag=image.sha256)

    async def _gone(self, job: Job, image: KeptImage) -> Problem:
        """Have our missing copy of *image* fetched again; return the answer that says so."""
        if not await asyncio.to_thread((self.blobs.root / "images").is_dir):
            return Problem(
                503, "images_unavailable", "the kept images are not there", remedy="bring back the data directory"
            )
        if await self.store.images.gone(image, self.clock()):
            log.error("kept_image_gone", job=job.id, n=image.n, effect="it is fetched again, or lost without a link")
        return Problem(
            404,
            "image_gone",
            "the kept copy of this image is gone",
            remedy="it is fetched again, by a fresh link if need be; see the job",
        )

    async def _image(self, request: Request) -> tuple[Job, KeptImage]:
        """Return the job and the image that a URL names, if we have a copy; `Problem` 404 says why not."""
        found = await self.store.job(request.path_params["id"])
        if found is None:
            raise no_such_job()
        job, images = found
        given = request.path_params["n"]
        n = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else -1
        image = next((image for image in images if image.n == n), None)
        if image is None:
            raise Problem(
                404,
                "no_such_image",
                f"the job has {len(images)} {'image' if len(images) == 1 else 'images'}",
                field="n",
                remedy="count from 0; a job without images has none yet, or failed",
            )
        if image.state == "lost":
            raise Problem(
                404,
                "image_lost",
                f"this image is lost: {image.lost_reason}",
                remedy=f"POST /v1/jobs/{job.id}/poll asks the provider for a fresh link",
            )
        if image.state == "removed":
            raise Problem(
                404,
                "image_removed",
                "the kept copy of this image was removed after RECEIVER_KEEP_IMAGES_DAYS",
                remedy="use source_url until it expires",
            )
        if not image.kept:
            raise Problem(
                404,
                "image_not_kept",
                "this image has not been kept yet",
                remedy="try again later, or use source_url until it expires",
            )
        return job, image

    async def _input(self, request: Request) -> tuple[Job, Path]:
        found = await self.store.job(request.path_params["id"])
        if found is None:
            raise no_such_job()
        try:
            path = await self.blobs.input_file(found[0].input_name)
        except FileNotFoundError as exc:
            raise _input_gone() from exc
        return found[0], path

    async def _thumbnail(self, job_id: str, n: int | None, original: AbstractAsyncContextManager[Path]) -> Path:
        """Return the thumbnail's path; it is made on the first request, once for concurrent ones."""
        target = self.blobs.thumbnail_path(job_id, n)
        lock = self._making.setdefault(target, asyncio.Lock())
        async with lock:
            made = await asyncio.to_thread(_size, target)
            if made:
                return target
            if made == 0:  # tried before, in vain
                raise _no_thumbnail()
            part = self.blobs.new_part()
            try:
                async with original as source:
                    await self.thumbnails.make(source, part)
                await self.blobs.keep_thumbnail(part, job_id, n)
            except NoThumbnail as exc:
                log.warning("no_thumbnail", job=job_id, n=n, reason=str(exc))
                await asyncio.to_thread(part.touch)
                await self.blobs.keep_thumbnail(part, job_id, n)
                raise _no_thumbnail() from exc
            finally:
                await asyncio.to_thread(part.unlink, missing_ok=True)
        return target


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _no_thumbnail() -> Problem:
    return Problem(
        404,
        "no_thumbnail",
        "there is no thumbnail: the picture is too large to be decoded here, or can't be decoded",
        remedy="use the picture itself",
    )


def _input_gone() -> Problem:
    return Problem(
        404,
        "input_not_kept",
        "the input is not kept any more",
        remedy="inputs are kept for a day after the job has ended",
    )
