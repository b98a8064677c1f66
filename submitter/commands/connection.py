"""What all commands need: a connection to the receiver, and errors that end a command with a sentence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
Job = dict[str, Any]


class CommandFailed(Exception):
    """Ends the command with this sentence and exit status *status*."""

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the receiver is, and the bearer token it wants."""

    url: str
    token: str | None = field(repr=False)

    def open(self) -> Remote:
        """A client; `CommandFailed` without a token."""
        if not self.token:
            raise CommandFailed(
                "there is no token; set SUBMITTER_TOKEN to one of the receiver's RECEIVER_API_TOKENS", status=2
            )
        return Remote(self.url, self.token)


class Remote:
    """The calls that the commands make."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers={"authorization": f"Bearer {token}"}, timeout=60, trust_env=False
        )

    async def __aenter__(self) -> Remote:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def submit(
        self, image: Path | str, *, provider: str, options: Mapping[str, Any], idempotency_key: str | None = None
    ) -> Job:
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        document: dict[str, Any] = {"provider": provider, "options": dict(options)}
        if isinstance(image, str):
            body = {**document, "image": {"url": image}}
            return await self._call("POST", "/v1/jobs", json=body, headers=headers)
        with image.open("rb") as file:
            return await self._call(
                "POST",
                "/v1/jobs",
                data={"job": json.dumps(document)},
                files={"image": (image.name, file)},
                headers=headers,
            )

    async def job(self, job_id: str) -> Job:
        return await self._call("GET", f"/v1/jobs/{job_id}")

    async def image(self, job_id: str, n: int) -> bytes | None:
        """Our copy of an image; None while it is not there."""
        answer = await self._client.get(f"/v1/jobs/{job_id}/images/{n}")
        return answer.content if answer.status_code == 200 else None

    async def providers(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self._call("GET", "/v1/providers"))["items"]
        return items

    async def _call(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        try:
            answer = await self._client.request(method, path, **sent)
        except httpx.TransportError as exc:
            raise CommandFailed(
                f"no answer from the receiver at {self._client.base_url} ({type(exc).__name__}); is it running?"
            ) from exc
        try:
            body: dict[str, Any] = answer.json()
        except ValueError as exc:
            raise CommandFailed(f"the receiver answered {answer.status_code} with something else than JSON") from exc
        if not answer.is_success:
            remedy = f"; {body['remedy']}" if body.get("remedy") else ""
            raise CommandFailed(f"{body.get('detail', answer.status_code)} ({body.get('code')}){remedy}")
        return body


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end. Ctrl-C ends it with status 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt as exc:
        raise CommandFailed("interrupted", status=130) from exc
