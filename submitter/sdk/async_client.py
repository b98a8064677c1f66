"""`AsyncClient`: a receiver's API for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, Unpack

import httpx

from submitter import tls
from submitter.connecting import find_receiver
from submitter.sdk import administration, events, jobs
from submitter.sdk.administration import DeliveryFilters, EndpointChanges, EndpointSettings
from submitter.sdk.event_types import Event
from submitter.sdk.jobs import Source
from submitter.sdk.link import DEFAULT_TIMEOUT_SECONDS, Link
from submitter.sdk.steps import Action, Body, Close, Done, Emit, Open, Piece, Sleep, Steps, Stream, Work
from submitter.sdk.values import Delivery, DeliveryState, Endpoint, Evidence, Health, Job, Pause, ProviderInfo, Replayed

T = TypeVar("T")


class AsyncClient:
    """
    A client of a running receiver. `async with AsyncClient() as client: …`, or `aclose()` when done.

    Without *url* and *token* they come from SUBMITTER_RECEIVER_URL and SUBMITTER_TOKEN, from the *profile* that
    `submitter login` stored, or from the receiver's data directory if there is one here. *timeout* is the number of
    seconds that a call may take with all its retries, unless the call sets its own. *on_retry* gets a message at each
    retry. Raises `NoReceiver` for a URL that can't be a receiver's, `Unauthorized` if no token is found.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        profile: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        address = find_receiver(url, token, profile=profile)
        self._link = Link(address.url, address.token, timeout=timeout, on_retry=on_retry)
        self._http = httpx.AsyncClient(trust_env=False, verify=tls.context())
        self.endpoints = AsyncEndpoints(self)
        self.deliveries = AsyncDeliveries(self)

    @property
    def url(self) -> str:
        """The receiver's base URL."""
        return self._link.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    # --- Jobs ---

    async def submit(
        self,
        provider: str,
        image: Source,
        *,
        options: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        notify_url: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Job:
        """
        Submit *image*, a file's path, its bytes, or its http(s) URL; return the queued job.

        *options* are the provider's own, under its documented names; *metadata* is yours, and comes back with the job;
        *notify_url* is notified when the job ends. Retries never make a second job: all tries carry *idempotency_key*,
        or a random one. Raises `Invalid` for an image or options that the provider does not take.
        """
        return await self._run(
            jobs.submit(
                self._link,
                provider,
                image,
                options=options,
                metadata=metadata,
                notify_url=notify_url,
                idempotency_key=idempotency_key,
                timeout=timeout,
            )
        )

    async def job(self, job: Job | str, *, timeout: float | None = None) -> Job:
        """Return the job as it is now. Raises `NotFound` if there is none."""
        return await self._run(jobs.job(self._link, job, timeout=timeout))

    def jobs(
        self,
        *,
        state: str | Sequence[str] = (),
        provider: str | Sequence[str] = (),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        q: str | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Job]:
        """
        Iterate over jobs on all pages, newest first; of several states and providers if lists are given.

        Jobs made from *since* on and before *until*: aware times, or texts in RFC 3339. *q* is searched for in ids,
        file names and metadata, ignoring case.
        """
        return self._iterate(
            jobs.jobs(self._link, state=state, provider=provider, since=since, until=until, q=q, timeout=timeout)
        )

    async def wait(self, job: Job | str, *, timeout: float | None = None) -> Job:
        """
        Return the job once it has ended, or is `unconfirmed`: its end may never come.

        Survives disconnects and restarts of the receiver. Raises `TimeoutError` after *timeout* seconds; without one it
        waits as long as the job takes.
        """
        return await self._run(jobs.wait(self._link, job, timeout=timeout))

    async def save(
        self,
        job: Job | str,
        directory: str | os.PathLike[str] = ".",
        *,
        stem: str | None = None,
        timeout: float | None = 300.0,
    ) -> list[Path]:
        """
        Wait for the job, then write its images: `stem.png`, or `stem-1.png`, `stem-2.png` where there are several.

        The stem is that of the input's file name if none is given, or else the job's id. Other files are never
        overwritten: the stem becomes `stem_2` then; an image that is there already is not downloaded again.
        Returns their paths. Raises `JobFailed` if the job did not succeed or an image is lost, and `TimeoutError` after
        *timeout* seconds.
        """
        return await self._run(jobs.save(self._link, job, directory, stem=stem, timeout=timeout))

    async def upscale(
        self,
        provider: str,
        image: Source,
        *,
        options: Mapping[str, Any] | None = None,
        out: str | os.PathLike[str] = ".",
        timeout: float | None = None,
    ) -> list[Path]:
        """
        Submit *image*, wait, and save the results in the directory *out*, named after the input; return their paths.

        The rules of `submit`, `wait` and `save` hold. *timeout* is for all of it, in seconds; after a `TimeoutError`
        the job goes on, and `jobs` finds it.
        """
        return await self._run(jobs.upscale(self._link, provider, image, options=options, out=out, timeout=timeout))

    async def image(self, job: Job | str, n: int = 0, *, timeout: float | None = None) -> bytes:
        """Return the receiver's copy of result *n*. Raises `NotFound`, with code `image_not_kept` until it is there."""
        return await self._run(jobs.image(self._link, job, n, timeout=timeout))

    async def cancel(self, job: Job | str, *, abandon: bool = False, timeout: float | None = None) -> Job:
        """
        Cancel a queued job. *abandon*: stop waiting for a job that was sent, which may still be billed.

        Raises `Conflict` for a job that has ended, and without *abandon* for one that was sent (`already_sent`).
        """
        return await self._run(jobs.cancel(self._link, job, abandon=abandon, timeout=timeout))

    async def poll(self, job: Job | str, *, wait: float = 30.0, timeout: float | None = None) -> Job:
        """
        Have the receiver poll the provider now, and return the job after that; for lost images, request fresh links.

        Raises `TimeoutError` if the poll has not happened after *wait* seconds: it stays due. With 0, the job is
        returned as it is before the poll.
        """
        return await self._run(jobs.poll(self._link, job, wait=wait, timeout=timeout))

    async def resubmit(
        self,
        job: Job | str,
        *,
        may_pay_twice: bool = False,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Job:
        """
        Create a new job from one that ended without a result; return the new one, which is billed, too.

        An `unconfirmed` job may be running and billed, and needs *may_pay_twice*. Raises `Conflict` for a job that is
        open or succeeded.
        """
        return await self._run(
            jobs.resubmit(
                self._link, job, may_pay_twice=may_pay_twice, idempotency_key=idempotency_key, timeout=timeout
            )
        )

    def evidence(self, job: Job | str, *, timeout: float | None = None) -> AsyncIterator[Evidence]:
        """Iterate over the evidence about the job, oldest first: callbacks, poll answers, the submit answer."""
        return self._iterate(jobs.evidence(self._link, job, timeout=timeout))

    # --- Events, providers, the receiver itself ---

    def events(
        self,
        *,
        after: int | None = None,
        types: Sequence[str] = (),
        providers: Sequence[str] = (),
        job: Job | str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """
        Iterate over events as they are written, each once and in order, without end, across disconnects and restarts.

        *after* is a position: 0 begins at the first event, None at the next one to be written. With *timeout*, raises
        `NoReceiver` once the receiver has been unreachable for that long.
        """
        params = events.params(types=types, providers=providers, job=job)
        return self._iterate(events.events(self._link, after=after, params=params, timeout=timeout))

    async def providers(self, *, timeout: float | None = None) -> list[ProviderInfo]:
        """Return the providers: capabilities, options as JSON Schema, queue, pause, spend."""
        return await self._run(administration.providers(self._link, timeout=timeout))

    async def pause(self, provider: str, *, reason: str | None = None, timeout: float | None = None) -> Pause | None:
        """Send no more jobs to *provider* until it is resumed; jobs that were sent go on."""
        return await self._run(administration.pause(self._link, provider, reason=reason, timeout=timeout))

    async def resume(self, provider: str, *, timeout: float | None = None) -> bool:
        """Send jobs to *provider* again; False if it was not paused."""
        return await self._run(administration.resume(self._link, provider, timeout=timeout))

    async def health(self, *, timeout: float | None = None) -> Health:
        """Return the readiness of the receiver, with the results of its checks."""
        return await self._run(administration.health(self._link, timeout=timeout))

    # --- Driving ---

    async def _run(self, steps: Steps[T]) -> T:
        async with aclosing(_Call(self._http, steps)) as call:
            outcome = await call.advance()
            assert isinstance(outcome, Done)
            return outcome.value

    async def _iterate(self, steps: Steps[None]) -> AsyncGenerator[Any, None]:
        async with aclosing(_Call(self._http, steps)) as call:
            while isinstance(outcome := await call.advance(), Emit):
                yield outcome.value


class AsyncEndpoints:
    """Subscribers' URLs: `client.endpoints`."""

    def __init__(self, client: AsyncClient) -> None:
        self._link = client._link
        self._run = client._run
        self._iterate = client._iterate

    def list(self, *, timeout: float | None = None) -> AsyncIterator[Endpoint]:
        """Iterate over all endpoints, oldest first."""
        return self._iterate(administration.list_endpoints(self._link, timeout=timeout))

    async def create(
        self, url: str, *, secret: str | None = None, timeout: float | None = None, **settings: Unpack[EndpointSettings]
    ) -> Endpoint:
        """Create an endpoint. Only this answer includes its `secret`."""
        return await self._run(
            administration.create_endpoint(self._link, url, secret=secret, settings=settings, timeout=timeout)
        )

    async def get(self, endpoint: Endpoint | str, *, timeout: float | None = None) -> Endpoint:
        """Return the endpoint as it is now. Raises `NotFound` if there is none."""
        return await self._run(administration.endpoint(self._link, endpoint, timeout=timeout))

    async def update(
        self, endpoint: Endpoint | str, *, timeout: float | None = None, **changes: Unpack[EndpointChanges]
    ) -> Endpoint:
        """Change the given settings; the others stay."""
        return await self._run(administration.update_endpoint(self._link, endpoint, changes=changes, timeout=timeout))

    async def delete(self, endpoint: Endpoint | str, *, timeout: float | None = None) -> None:
        """Delete the endpoint; deliveries that wait for it are dropped."""
        await self._run(administration.delete_endpoint(self._link, endpoint, timeout=timeout))

    async def test(
        self, endpoint: Endpoint | str, *, event_type: str = "job.succeeded", timeout: float | None = None
    ) -> Delivery:
        """Send an example event; `deliveries.get` returns its outcome."""
        return await self._run(
            administration.test_endpoint(self._link, endpoint, event_type=event_type, timeout=timeout)
        )

    async def rotate_secret(
        self,
        endpoint: Endpoint | str,
        *,
        overlap_seconds: float | None = None,
        secret: str | None = None,
        timeout: float | None = None,
    ) -> Endpoint:
        """Sign with a new secret, and for *overlap_seconds* (a day if not given) with the old one too."""
        return await self._run(
            administration.rotate_secret(
                self._link, endpoint, overlap_seconds=overlap_seconds, secret=secret, timeout=timeout
            )
        )


class AsyncDeliveries:
    """Deliveries of events to endpoints: `client.deliveries`."""

    def __init__(self, client: AsyncClient) -> None:
        self._link = client._link
        self._run = client._run
        self._iterate = client._iterate

    def list(self, *, timeout: float | None = None, **filters: Unpack[DeliveryFilters]) -> AsyncIterator[Delivery]:
        """Iterate over deliveries on all pages, newest first."""
        return self._iterate(administration.list_deliveries(self._link, filters=filters, timeout=timeout))

    async def get(self, delivery: Delivery | str, *, timeout: float | None = None) -> Delivery:
        """Return the delivery as it is now, with its attempts. Raises `NotFound` if there is none."""
        return await self._run(administration.delivery(self._link, delivery, timeout=timeout))

    async def replay(self, delivery: Delivery | str, *, timeout: float | None = None) -> Delivery:
        """Deliver it again, under the same event id; return the delivery, which is pending then."""
        return await self._run(administration.replay(self._link, delivery, timeout=timeout))

    async def replay_many(
        self,
        *,
        endpoint: Endpoint | str | None = None,
        since: datetime | str | None = None,
        state: DeliveryState | None = None,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> Replayed:
        """Deliver failed events again, or everything *since* a time; *dry_run* only counts."""
        return await self._run(
            administration.replay_many(
                self._link, endpoint=endpoint, since=since, state=state, dry_run=dry_run, timeout=timeout
            )
        )


class _Call(Generic[T]):
    """A call being carried out; its streams are closed with it."""

    def __init__(self, http: httpx.AsyncClient, steps: Steps[T]) -> None:
        self._http = http
        self._steps = steps
        self._streams: set[Stream] = set()

    async def advance(self) -> Emit | Done[T]:
        """Advance to the next value for the caller, or to the end."""
        try:
            step = self._steps.send(None)
            while not isinstance(step, Emit):
                try:
                    result = await self._carry_out(step)
                except (httpx.RequestError, OSError) as exc:
                    step = self._steps.throw(exc)
                else:
                    step = self._steps.send(result)
        except StopIteration as end:
            return Done(end.value)
        return step

    async def _carry_out(self, step: Action) -> Any:
        match step:
            case httpx.Request():
                response = await self._http.send(step, stream=True)
                try:
                    body = Body(response)
                    async for piece in response.aiter_raw():
                        body.add(piece)
                finally:
                    await response.aclose()
                return body.whole()
            case Open(request):
                response = await self._http.send(request, stream=True)
                stream = Stream(response, response.aiter_raw())
                self._streams.add(stream)
                return stream
            case Piece(stream):
                assert isinstance(stream.pieces, AsyncIterator)
                return await anext(stream.pieces, None)
            case Close(stream):
                self._streams.discard(stream)
                await stream.response.aclose()
            case Sleep(seconds):
                await asyncio.sleep(seconds)
            case Work(function):
                return await asyncio.to_thread(function)
        return None

    async def aclose(self) -> None:
        self._steps.close()
        for stream in self._streams:
            await stream.response.aclose()
