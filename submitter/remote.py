"""
The SDK for a running receiver: submit, wait, stream, save.

    async with Receiver(url, token) as receiver:
        job = await receiver.submit("freepik", Path("in.png"), options={"scale_factor": "2x"})
        job = await receiver.wait(job, timeout=600)
        paths = await receiver.save(job, Path("out"))

Every submit carries an idempotency key, so that a try that was cut is made again without a second job. Waiting listens
to the receiver's event stream and polls the job now and then, so neither a cut nor a proxy that holds the stream
back makes it miss the end. Applications that receive our events check them with `verify(headers, body, secret)`.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from submitter.bounded import BoundedTransport
from submitter.connecting import checked_url
from submitter.errors import Conflict, Invalid, NoReceiver, NotFound, Overloaded, RequestRefused, Unauthorized
from submitter.remote_values import Event, Job, JobImage
from submitter.signatures import verify

__all__ = ["Event", "Job", "JobImage", "NoReceiver", "Receiver", "RequestRefused", "verify"]

_TRIES = 6
_AGAIN = frozenset({429, 502, 503, 504})
_REFUSALS: dict[int, type[RequestRefused]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    410: NotFound,
    409: Conflict,
    429: Overloaded,
    503: Overloaded,
}
_SILENCE_SECONDS = 45.0  # three heartbeats
_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/gif": ".gif"}


class Receiver:
    """
    A receiver at *url*, spoken to with the bearer *token*. Used with `async with`.

    *waiting* is told, in a sentence, whenever a call or the stream is cut and tried again.
    """

    def __init__(
        self, url: str, token: str, *, timeout_seconds: float = 60.0, waiting: Callable[[str], None] = lambda why: None
    ) -> None:
        base = checked_url(url)
        self._waiting = waiting
        self._client = httpx.AsyncClient(
            base_url=base,
            headers={"authorization": f"Bearer {token}"},
            timeout=timeout_seconds,
            transport=BoundedTransport(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    # --- Jobs -------------------------------------------------------------------------------------------------------

    async def submit(
        self,
        provider: str,
        image: Path | bytes | str,
        *,
        options: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        notify_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """
        Submit a job. *image* is a file, its bytes, or the URL of one.

        Tried again when the answer is lost or the receiver is busy: all tries carry one idempotency key.
        """
        document: dict[str, Any] = {"provider": provider, "options": dict(options or {})}
        if metadata is not None:
            document["metadata"] = dict(metadata)
        if notify_url is not None:
            document["notify_url"] = notify_url
        headers = {"idempotency-key": idempotency_key or secrets.token_urlsafe(24)}

        async def send() -> httpx.Response:
            if isinstance(image, str):
                body = {**document, "image": {"url": image}}
                return await self._client.post("/v1/jobs", json=body, headers=headers)
            fields = {"job": json.dumps(document)}
            if isinstance(image, bytes):
                return await self._client.post("/v1/jobs", data=fields, files={"image": image}, headers=headers)
            with image.open("rb") as file:
                files = {"image": (image.name, file)}
                return await self._client.post("/v1/jobs", data=fields, files=files, headers=headers)

        return Job.from_json(_object(await self._patiently(send)))

    async def job(self, job: Job | str) -> Job:
        """The job as it is now."""
        answer = await self._patiently(lambda: self._client.get(f"/v1/jobs/{_id(job)}"))
        return Job.from_json(_object(answer))

    async def wait(self, job: Job | str, *, timeout: float | None = None) -> Job:
        """
        The job once it has ended, or is `unconfirmed`: then nothing may ever come. `TimeoutError` after *timeout*.
        """
        update = asyncio.Event()
        listening = asyncio.create_task(self._listen(_id(job), update))
        pause = 0.5
        try:
            async with asyncio.timeout(timeout):
                while True:
                    update.clear()
                    found = await self.job(job)
                    if found.ended:
                        return found
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await update.wait()
                    pause = min(pause * 1.5, 10.0 if not listening.done() else 3.0)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def providers(self) -> list[dict[str, Any]]:
        """The providers as the receiver shows them: capabilities, options as JSON Schema, queue, pause, spend."""
        answer = await self._patiently(lambda: self._client.get("/v1/providers"))
        items: list[dict[str, Any]] = _object(answer).get("items", [])
        return items

    async def image(self, job: Job | str, n: int = 0) -> bytes:
        """The receiver's copy of a result. `RequestRefused` with `image_not_kept` while it is not there."""
        answer = await self._patiently(lambda: self._client.get(f"/v1/jobs/{_id(job)}/images/{n}"))
        return answer.content

    async def save(self, job: Job | str, to: Path, *, stem: str | None = None, timeout: float = 120.0) -> list[Path]:
        """
        Write all results into the directory *to*, as `stem-n.suffix`; the stem is the job's id if none is given.

        Waits until the receiver has kept them, `TimeoutError` if that takes longer than *timeout*.
        """
        async with asyncio.timeout(timeout):
            pause = 0.1
            found = await self.job(job)
            while not all(image.kept for image in found.images):
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 3.0)
                found = await self.job(job)
        await asyncio.to_thread(to.mkdir, parents=True, exist_ok=True)
        saved = []
        for n, image in enumerate(found.images):
            suffix = _SUFFIXES.get(image.content_type or "", "")
            target = to / f"{stem or found.id}-{n}{suffix}"
            await self._save(found.id, n, target)
            saved.append(target)
        return saved

    # --- Events -----------------------------------------------------------------------------------------------------

    async def events(
        self,
        *,
        after: int | None = None,
        types: Sequence[str] = (),
        providers: Sequence[str] = (),
        job: Job | str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """
        Events as they happen, each once and in order, for ever: a cut is mended from the last position on.

        *after* is a position: 0 begins at the first event; without it, at what happens from now on.
        """
        async with aclosing(self._follow(after, _params(types, providers, job), lambda: None)) as events:
            async for event in events:
                yield event

    async def _follow(
        self, after: int | None, params: Mapping[str, str], opened: Callable[[], None]
    ) -> AsyncGenerator[Event, None]:
        position, cuts = after, 0
        while True:
            headers = {"accept": "text/event-stream"}
            if position is not None:
                headers["last-event-id"] = str(position)
            try:
                timeout = httpx.Timeout(30.0, read=_SILENCE_SECONDS)
                async with self._client.stream(
                    "GET", "/v1/events", params=dict(params), headers=headers, timeout=timeout
                ) as response:
                    if response.status_code not in _AGAIN:
                        await _checked(response)
                        if position is None:
                            position = int(response.headers.get("last-event-id", 0))
                        opened()
                        async with aclosing(_events(response)) as events:
                            async for event in events:
                                position, cuts = event.position, 0
                                yield event
            except httpx.TransportError as exc:
                self._waiting(f"the stream of {self._client.base_url} was cut ({type(exc).__name__}); trying again")
            cuts += 1
            await asyncio.sleep(_pause(cuts))

    async def _listen(self, job_id: str, update: asyncio.Event) -> None:
        async with aclosing(self._follow(None, {"job": job_id}, update.set)) as events:
            async for _ in events:
                update.set()

    # --- Parts ------------------------------------------------------------------------------------------------------

    async def _save(self, job_id: str, n: int, target: Path) -> None:
        part = target.with_name(f".{target.name}.part")
        try:
            async with self._client.stream("GET", f"/v1/jobs/{job_id}/images/{n}") as response:
                await _checked(response)
                with await asyncio.to_thread(part.open, "wb") as file:
                    async for piece in response.aiter_bytes(256 * 1024):
                        await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(part.replace, target)
        except httpx.TransportError as exc:
            raise NoReceiver(f"the image was cut off: {type(exc).__name__}") from exc
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)

    async def _patiently(self, send: Callable[[], Any]) -> httpx.Response:
        """Calls that may be made again are, while no answer comes or the receiver says later."""
        for tried in range(1, _TRIES + 1):
            try:
                answer: httpx.Response = await send()
            except httpx.TransportError as exc:
                if tried == _TRIES:
                    reason = type(exc).__name__
                    raise NoReceiver(f"no answer from {self._client.base_url} ({reason}); is it running?") from exc
                self._waiting(f"no answer from {self._client.base_url} yet; trying again")
                await asyncio.sleep(_pause(tried))
                continue
            if answer.status_code not in _AGAIN or tried == _TRIES:
                return await _checked(answer)
            self._waiting(f"{self._client.base_url} answers {answer.status_code}; trying again")
            wish = answer.headers.get("retry-after", "")
            await asyncio.sleep(min(float(wish), 30.0) if wish.isdecimal() else _pause(tried))
        raise AssertionError("unreachable")


async def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    await answer.aread()
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    problem = problem if isinstance(problem, dict) else {}
    raise _REFUSALS.get(answer.status_code, Invalid)(
        str(problem.get("detail") or f"the receiver answered {answer.status_code}"),
        code=str(problem.get("code") or f"http_{answer.status_code}"),
        status=answer.status_code,
        problem=problem,
        field=problem.get("field"),
        remedy=problem.get("remedy"),
        request_id=answer.headers.get("x-request-id"),
    )


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        shown = answer.json()
    except ValueError:
        shown = None
    if not isinstance(shown, dict):
        raise NoReceiver(f"what answers at {answer.url.copy_with(path='/', query=None)} is no receiver")
    return shown


async def _events(response: httpx.Response) -> AsyncGenerator[Event, None]:
    """Server-sent events, comments left out. Ends where the stream does; a half event is no event."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Event.from_fields(fields)
            fields = {}


def _params(types: Sequence[str], providers: Sequence[str], job: Job | str | None) -> dict[str, str]:
    params = {"type": ",".join(types), "provider": ",".join(providers), "job": "" if job is None else _id(job)}
    return {name: value for name, value in params.items() if value}


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def _pause(tried: int) -> float:
    return min(0.1 * 2.0 ** min(tried, 10), 5.0) * random.uniform(0.7, 1.0)
