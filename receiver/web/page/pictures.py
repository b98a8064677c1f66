"""Uploads of pictures that were chosen in a form."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from starlette.datastructures import UploadFile

from receiver.domain.jobs import Job
from receiver.store.blobs import Blobs
from receiver.store.jobs import JobStore
from receiver.web.admission import Admissions
from receiver.web.job_request import MAX_INPUT_BYTES, JobRequest
from receiver.web.problems import Problem

_PIECE = 256 * 1024
_LONGEST_FILE_NAME = 255


@dataclass(frozen=True, slots=True)
class Pictures:
    """Admits uploaded files, as `POST /v1/jobs` does."""

    admissions: Admissions
    blobs: Blobs
    store: JobStore

    async def admit(self, file: UploadFile, document: Mapping[str, Any], *, token_id: str, key: str | None) -> Job:
        """Return the job for *file* and *document*; raises `Problem`. *key* is an idempotency key."""
        name = (file.filename or "").replace("\\", "/").rpartition("/")[2][:_LONGEST_FILE_NAME]
        return await self._admit(file.file, name, document, token_id=token_id, key=key)

    async def admit_again(self, job_id: str, document: Mapping[str, Any], *, token_id: str, key: str) -> Job:
        """Return a job with the picture of an earlier one; raises `Problem`, also if that is no longer kept."""
        found = await self.store.job(job_id)
        path = None if found is None else await self._input(found[0])
        if path is None or found is None:
            raise Problem(
                409, "input_gone", "the picture of that job is not kept any more", remedy="send the picture again"
            )
        with await asyncio.to_thread(path.open, "rb") as source:
            return await self._admit(source, found[0].input.file_name or "", document, token_id=token_id, key=key)

    async def input_of(self, job_id: str) -> Path | None:
        """Return the input picture of a job, as long as it is kept."""
        found = await self.store.job(job_id)
        return None if found is None else await self._input(found[0])

    async def _input(self, job: Job) -> Path | None:
        try:
            return await self.blobs.input_file(job.input_name)
        except FileNotFoundError:
            return None

    async def _admit(
        self, source: BinaryIO, name: str, document: Mapping[str, Any], *, token_id: str, key: str | None
    ) -> Job:
        part = self.blobs.new_part()
        try:
            digest = await asyncio.to_thread(_keep, source, part)
            wanted = JobRequest(document, None, part, digest, name or None)
            job, _, _ = await self.admissions.admit(wanted, token_id=token_id, key=key)
            return job
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)


def _keep(source: BinaryIO, part: Path) -> str:
    """Copy *source* to *part*, each piece on the disk before the next; returns its digest."""
    digest = hashlib.sha256()
    size = 0
    with part.open("wb") as target:
        while data := source.read(_PIECE):
            size += len(data)
            if size > MAX_INPUT_BYTES:
                raise Problem(
                    413,
                    "image_too_large",
                    f"an image may have at most {MAX_INPUT_BYTES} bytes",
                    field="image",
                    remedy="make the image smaller",
                )
            digest.update(data)
            target.write(data)
            target.flush()
            os.fsync(target.fileno())
    return digest.hexdigest()
