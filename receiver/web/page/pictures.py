"""Pictures that were chosen in a form, on their way to jobs."""

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

    async def admit(self, file: UploadFile, document: Mapping[str, Any], *, token_id: str, key: str | None) -> Job:
        """The job of *file* and of what *document* asks for; raises `Problem`. *key* is an idempotency key."""
        part = self.blobs.new_part()
        try:
            digest = await asyncio.to_thread(_keep, file.file, part)
            name = (file.filename or "").replace("\\", "/").rpartition("/")[2][:_LONGEST_FILE_NAME]
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
