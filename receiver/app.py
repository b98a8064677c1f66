"""
The composition root: settings → parts → one Starlette application.

`Receiver` holds the parts; its lifespan opens the database, reads what an earlier life left unread, starts the loops,
and stops them again: streams end, calls in flight get a few seconds, what was not sent is handed back, what was is
`unconfirmed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import httpx
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from receiver.domain.polling import Timing
from receiver.domain.tokens import Tokens
from receiver.downstream.notifier import Notifier
from receiver.downstream.stream import Stream
from receiver.net.client import Outbound
from receiver.net.guard import Guard
from receiver.runtime.loops import Loop
from receiver.runtime.metrics import Metrics
from receiver.runtime.secrets import generated
from receiver.settings import Settings
from receiver.store.blobs import Blobs
from receiver.store.database import Database, open_database
from receiver.store.deliveries import Deliveries
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from receiver.store.events import Events
from receiver.store.jobs import JobStore
from receiver.store.retention import Pruning
from receiver.store.sqlite_file import usable_database
from receiver.upstream.archive import Archive
from receiver.upstream.intake import Intake, Wakes
from receiver.upstream.leases import Leases
from receiver.upstream.pauses import Pauses
from receiver.upstream.poller import Poller
from receiver.upstream.rate_limits import Pace
from receiver.upstream.statistics import ProviderStatistics
from receiver.upstream.submissions import Submissions
from receiver.web import openapi
from receiver.web.admission import Admissions
from receiver.web.auth import Bearer
from receiver.web.callbacks import CallbackRoute, Callbacks
from receiver.web.deliveries import DeliveriesApi
from receiver.web.endpoints import EndpointsApi
from receiver.web.events import EventsApi
from receiver.web.health import Health
from receiver.web.job_upload import Uploads
from receiver.web.jobs import JobsApi
from receiver.web.problems import NOT_FOUND, Problem, answer_problem, busy
from receiver.web.providers import ProvidersApi
from submitter.client import HttpSender
from submitter.provider import Provider
from submitter.provider_settings import ProviderSettings, Rate
from submitter.providers import PROVIDERS

log = structlog.get_logger("receiver")

_GRACE_SECONDS = 3.0
_CHECKPOINT_SECONDS = 0.5
_POLLS = 16


class Receiver:
    """All parts of one process. `app` is the ASGI application; `public_url` may change while it runs (a tunnel)."""

    def __init__(self, settings: Settings, each: Mapping[str, ProviderSettings]) -> None:
        self.settings = settings
        self.public_url = settings.public_url
        self.public_ports: set[int] = set()
        """Local ports whose requests come from outside, whatever host they name."""
        self.metrics = Metrics()
        self.stopping = asyncio.Event()
        made = generated(settings.data_dir)
        self.api_tokens = [one.get_secret_value() for one in settings.api_tokens] or [made["api_token"]]
        self.notify_secrets = [one.get_secret_value() for one in settings.notify_secrets] or [made["notify_secret"]]
        keys = [one.get_secret_value() for one in settings.secret_keys] or [made["secret_key"]]
        self.tokens = Tokens(keys)
        self.providers = {name: PROVIDERS[name].from_settings(its) for name, its in each.items()}
        self.configured = frozenset(name for name, its in each.items() if its.configured)
        self._each = each
        self.loops: list[Loop] = []
        self.app = Starlette(
            middleware=[Middleware(CallbackRoute, callbacks=lambda: self.callbacks)],
            lifespan=self._lifespan,
            exception_handlers={Problem: answer_problem, 404: _not_found, 405: _not_allowed, 500: _internal_error},
        )
        self.app.router.redirect_slashes = False  # a redirect would carry a capability URL in its Location

    @property
    def base_url(self) -> str:
        return self.public_url or ""

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            with usable_database(self.settings.database_path):
                await self._open(stack)
            tasks = [asyncio.create_task(loop.run(), name=f"loop {loop.name}") for loop in self.loops]
            self._warn()
            try:
                yield
            finally:
                self.stopping.set()
                await self._stop(tasks)

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        blobs = Blobs(settings.data_dir)
        await asyncio.to_thread(blobs.prepare)
        self.database: Database = await open_database(settings.database_path)
        stack.push_async_callback(self.database.close)
        guard = Guard(settings.allow_networks)
        self.outbound = await stack.enter_async_context(Outbound(guard))
        tls = httpx.create_ssl_context(trust_env=False)
        sender = await stack.enter_async_context(HttpSender())
        self.store = JobStore(
            self.database,
            public_url=lambda: self.base_url,
            first_delay_seconds=settings.retry_schedule[0],
        )
        self.pauses = Pauses(self.database)
        await self.pauses.load()
        self.statistics = ProviderStatistics(self.database)
        await self.statistics.load()
        self.leases = Leases(self.store)
        polls = {name: Pace(self._poll_rates(name), concurrency=_POLLS) for name in self.providers}
        self.delivery_log = DeliveryLog(self.database)
        self.events = Events(self.database)
        self.stream = Stream(self.events, self.stopping)
        self.endpoints = Endpoints(self.database)
        self.notifier = Notifier(
            Deliveries(self.database),
            self.endpoints,
            lambda: Outbound(guard, ssl_context=tls, max_connections=1),
            self.metrics,
            owner=self.leases.owner,
            secrets=self.notify_secrets,
            schedule=settings.retry_schedule,
            on_events=self._events_written,
        )
        self.archive = Archive(self.store, blobs, self.outbound, self.metrics, on_events=self._events_written)
        self.intake = Intake(
            self.store,
            self.providers,
            blobs,
            self.metrics,
            confirm=settings.confirm,
            timing_of=self.timing_of,
            wakes=Wakes(
                poll=lambda: self.poller.loop.wake(),
                submit=lambda: self.submissions.loop.wake(),
                deliver=self.notifier.loop.wake,
                archive=self.archive.loop.wake,
                on_events=self._events_written,
            ),
        )
        self.submissions = Submissions(
            self.store,
            self.intake,
            {name: self.providers[name] for name in self.providers if name in self.configured},
            paces={name: self._pace(name) for name in self.providers},
            pauses=self.pauses,
            leases=self.leases,
            sender=sender,
            tokens=self.tokens,
            blobs=blobs,
            metrics=self.metrics,
            public_url=lambda: self.public_url,
            job_timeout=timedelta(seconds=settings.job_timeout),
        )
        self.poller = Poller(
            self.store,
            self.intake,
            self.providers,
            self.configured,
            paces=polls,
            leases=self.leases,
            sender=sender,
            metrics=self.metrics,
            concurrency=_POLLS,
        )
        self.admissions = Admissions(
            self.store,
            blobs,
            self.outbound,
            self.providers,
            self.configured,
            public_url=lambda: self.public_url,
            admitted=self._to_submit,
        )
        self.loops = [
            self.leases.loop,
            self.intake.loop,
            self.submissions.loop,
            self.poller.loop,
            self.archive.loop,
            self.notifier.loop,
            self.notifier.renewals,
            self.stream.loop,
            Loop("statistics", self._judge_callbacks, idle_seconds=5.0),
            Pruning(self.database, blobs, keep=timedelta(days=settings.keep_days)).loop,
            Loop("checkpoints", self._checkpoint, idle_seconds=_CHECKPOINT_SECONDS),
        ]
        self.health = Health(
            self.database,
            self.loops,
            self.metrics,
            self.statistics,
            self.providers,
            from_outside=self._from_outside,
        )
        self._mount(blobs)

    def _mount(self, blobs: Blobs) -> None:
        self.callbacks = Callbacks(
            self.intake,
            self.store,
            self.providers,
            self.tokens,
            self.metrics,
            max_bytes=self.settings.max_callback_bytes,
            token_lifetime=timedelta(seconds=self.settings.job_timeout),
        )
        bearer = Bearer(self.api_tokens, read_only=[one.get_secret_value() for one in self.settings.read_tokens])
        jobs = JobsApi(
            store=self.store,
            admissions=self.admissions,
            providers=self.providers,
            configured=self.configured,
            tokens=self.tokens,
            blobs=blobs,
            uploads=Uploads(blobs),
            base_url=lambda: self.base_url,
            timing_of=self.timing_of,
            poll=self.poller.loop.wake,
            on_events=self._events_written,
        )
        providers = ProvidersApi(
            store=self.store,
            providers=self.providers,
            configured=self.configured,
            queue_seconds=self.submissions.done_in_seconds,
            pauses=self.pauses,
            statistics=self.statistics,
            resumed=self._to_submit,
        )
        self.app.router.routes[:] = [
            Route("/callbacks/{provider}/{token}", self.callbacks, methods=["GET", "HEAD", "POST"]),
            *jobs.routes(bearer),
            *providers.routes(bearer),
            *EventsApi(self.events, self.stream, tuple(self.providers)).routes(bearer),
            *EndpointsApi(
                self.endpoints,
                self.delivery_log,
                self.outbound.guard,
                base_url=lambda: self.base_url,
                changed=self.notifier.endpoints_changed,
            ).routes(bearer),
            *DeliveriesApi(self.endpoints, self.delivery_log, changed=self.notifier.loop.wake).routes(bearer),
            *self.health.routes(),
            *openapi.routes(PROVIDERS),
        ]

    async def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        """Calls in flight get a few seconds; the reader runs to the end so that their answers are settled."""
        last = {f"loop {self.intake.loop.name}", f"loop {self.leases.loop.name}"}
        for task in tasks:
            if task.get_name() not in last:
                task.cancel()
        await asyncio.gather(
            *(pool.shutdown(grace_seconds=_GRACE_SECONDS) for pool in self.submissions.pools.values()),
            self.poller.pool.shutdown(grace_seconds=_GRACE_SECONDS),
            self.archive.pool.shutdown(grace_seconds=_GRACE_SECONDS / 2),
            self.notifier.shutdown(grace_seconds=_GRACE_SECONDS / 2),
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while await self.intake.read_some() == 0.0:
                    pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _from_outside(self, request: Request) -> bool:
        """Whether a request came by the public name, or by a port that a tunnel leads to."""
        if self.settings.public_metrics:
            return False
        server, host = request.scope.get("server"), request.url.hostname
        return (server is not None and server[1] in self.public_ports) or (
            host is not None and host == public_host(self.public_url)
        )

    # --- Parts ------------------------------------------------------------------------------------------------------

    def timing_of(self, provider: str) -> Timing:
        """When *provider*'s jobs are polled, by the settings in force."""
        return timing(self.settings, self.providers[provider], degraded=provider in self.statistics.degraded)

    def _pace(self, name: str) -> Pace:
        provider, own = self.providers[name], self._each[name]
        rates = provider.rates if own.rate is None else [own.rate]
        return Pace(rates, concurrency=own.concurrency or provider.concurrency)

    def _poll_rates(self, name: str) -> list[Rate]:
        """
        Documented limits of status calls; an operator's own rate moves them in proportion.

        None where an operator sets POLL_INTERVAL: then that alone says how often a job is polled.
        """
        provider, rate = self.providers[name], self._each[name].rate
        if self.settings.poll_interval is not None:
            return []
        if rate is None or not provider.rates or not provider.poll_rates:
            return list(provider.poll_rates)
        documented = provider.rates[0].count / provider.rates[0].seconds
        factor = rate.count / rate.seconds / documented
        return [Rate(max(round(one.count * max(factor, 1.0)), 1), one.seconds) for one in provider.poll_rates]

    def _events_written(self) -> None:
        """Events were written: deliver them, and show them to who listens."""
        self.notifier.loop.wake()
        self.stream.loop.wake()

    def _to_submit(self) -> None:
        """Jobs were admitted, or a provider resumed: submit what is queued."""
        self.submissions.loop.wake()
        self._events_written()

    async def _checkpoint(self) -> float:
        await self.database.checkpoint()
        return _CHECKPOINT_SECONDS

    async def _judge_callbacks(self) -> float:
        for name, provider in self.providers.items():
            if provider.callbacks and await self.statistics.judge(name, datetime.now(UTC)):
                log.warning("callbacks_degraded", provider=name)
                self._events_written()
        return 5.0

    def _warn(self) -> None:
        if self.public_url is None:
            log.warning("no_public_url", effect="jobs are sent without a callback and polled")
        for name in self.configured:
            for warning in self.providers[name].warnings():
                log.warning(warning.code, provider=name, effect=warning.effect, remedy=warning.remedy)
        if not self.configured:
            log.warning("no_provider_configured", remedy="set FREEPIK_API_KEY or another provider's key")


def timing(settings: Settings, provider: Provider, *, degraded: bool = False) -> Timing:
    """When *provider*'s jobs are polled; one whose callbacks get lost is polled early."""
    rhythm, interval = provider.rhythm, settings.poll_interval
    first = interval or rhythm.first
    return Timing(
        first=first,
        interval=interval or rhythm.interval,
        silence=first if degraded else settings.callback_timeout,
        growth=rhythm.growth,
        cap=4 * interval if interval else rhythm.cap,
        lifetime=settings.job_timeout,
        pollable=provider.pollable,
    )


def public_host(public_url: str | None) -> str | None:
    """The host of *public_url*, if strangers may reach it: not an address of this machine or a private network."""
    host = None if public_url is None else urlsplit(public_url).hostname
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return None
    with contextlib.suppress(ValueError):
        return host if ipaddress.ip_address(host).is_global else None
    return host


async def _not_found(request: Request, exc: Exception) -> Response:
    return NOT_FOUND.to_response()


async def _not_allowed(request: Request, exc: Exception) -> Response:
    # The router names the methods of one route only, and a path has a route for each of its methods.
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    path = next((route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE), None)
    methods = {method for route in routes if route.path == path for method in route.methods or ()}
    return Problem(
        405,
        "method_not_allowed",
        "this method is not for this path",
        headers={"allow": ", ".join(sorted(methods))},
        remedy="/openapi.json lists what there is",
    ).to_response()


async def _internal_error(request: Request, exc: Exception) -> Response:
    """Answer 503 with `Retry-After` to an error that nobody foresaw: it is ours, not the caller's."""
    log.error("request_failed", method=request.method, error=type(exc).__name__, detail=str(exc)[:300])
    return busy("something went wrong on our side").to_response()
