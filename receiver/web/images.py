"""Pictures over HTTP: our copies of results, behind a bearer token, and the inputs that providers fetch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from receiver.domain.tokens import TokenInvalid, Tokens
from receiver.store.blobs import Blobs
from receiver.store.jobs import JobStore
from receiver.web.auth import Bearer
from receiver.web.problems import Problem, no_such_job


@dataclass(frozen=True, slots=True)
class ImagesApi:
    """`/v1/jobs/{id}/images/{n}` and `/inputs/{token}`."""

    store: JobStore
    blobs: Blobs
    tokens: Tokens

    def routes(self, bearer: Bearer) -> list[Route]:
        return [
            Route("/v1/jobs/{id}/images/{n}", bearer.guard(self.image), methods=["GET"]),
            Route("/inputs/{token}", self.input, methods=["GET"]),
        ]

    async def image(self, request: Request) -> Response:
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
