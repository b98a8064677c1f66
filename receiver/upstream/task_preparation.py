"""From a queued job to the request for its provider: the task, and the callback URL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from receiver.domain.jobs import Job
from receiver.domain.tokens import Tokens
from receiver.store.blobs import Blobs
from submitter.errors import TaskRefused
from submitter.image_files import SUFFIXES
from submitter.images import inspect
from submitter.provider import Provider
from submitter.vocabulary import Picture, Task


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """A task, ready to be submitted. `callback_url` is None where no callback is wanted or possible."""

    task: Task
    callback_url: str | None


class TaskPreparation:
    """Prepares tasks. *public_url* returns the base of our own URLs, None while there is none."""

    def __init__(self, blobs: Blobs, tokens: Tokens, public_url: Callable[[], str | None]) -> None:
        self._blobs = blobs
        self._tokens = tokens
        self._public_url = public_url

    async def prepare(self, provider: Provider, job: Job) -> PreparedTask:
        """Check the job's options and input again, and mint its URLs. Raises `TaskRefused`."""
        try:
            options = provider.Options.model_validate(job.options)
        except ValidationError as exc:
            raise TaskRefused("its options are not valid any more", field="options", code="invalid_options") from exc
        picture = await asyncio.to_thread(inspect, await self._input(job))
        picture = replace(picture, url=self._input_url(job, picture))
        task = Task(picture, options.to_send(), options.passthrough)
        return PreparedTask(task, self._callback_url(provider, job))

    async def _input(self, job: Job) -> Path:
        try:
            return await self._blobs.input_file(job.input_name)
        except FileNotFoundError as exc:
            raise TaskRefused("the image file is gone", field="image", code="image_gone") from exc

    def _callback_url(self, provider: Provider, job: Job) -> str | None:
        public_url = self._public_url()
        if public_url is None or not provider.options_for_callback(job.options):
            return None
        return f"{public_url}/callbacks/{provider.name}/{self._tokens.callback(job.id, provider.name)}"

    def _input_url(self, job: Job, picture: Picture) -> str | None:
        """Return the input's URL. Its path has the extension of its type, which some providers check."""
        public_url = self._public_url()
        if public_url is None:
            return job.input_url
        return f"{public_url}/inputs/{self._tokens.input(job.id)}{SUFFIXES.get(picture.content_type, '')}"
