"""
The composition root: settings → parts → one Starlette application.

Its lifespan opens the database, reads evidence that an earlier process left unread, starts the loops, and stops them
again: streams end, calls in flight get a few seconds, unsent jobs are released, sent ones become `unconfirmed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from receiver.parts import EVERYTHING, Credentials, Parts, Role, build
from receiver.runtime.direct_protocol import DirectRoute
from receiver.runtime.metrics import Metrics
from receiver.settings import Settings
from receiver.store.changes import ChangeLog
from receiver.store.errors import StoreError
from receiver.store.rollups import RollupTable
from receiver.store.spent_tokens import SpentTokens
from receiver.store.sqlite_file import usable_database
from receiver.web import openapi
from receiver.web.admission import Admissions
from receiver.web.auth import Bearer
from receiver.web.callbacks import CALLBACK_PATH, CallbackLimits, CallbackRoute, Callbacks
from receiver.web.deliveries import DeliveriesApi
from receiver.web.endpoints import EndpointsApi
from receiver.web.events import EventsApi
from receiver.web.health import Health
from receiver.web.images import ImagesApi
from receiver.web.job_upload import Uploads
from receiver.web.jobs import JobPresenter, JobsApi
from receiver.web.page.api import Api
from receiver.web.page.dashboard import Dashboard, opens_a_page
from receiver.web.page.live import Live
from receiver.web.page.pictures import Pictures
from receiver.web.page.sessions import Sessions
from receiver.web.problems import NOT_FOUND, Problem, busy
from receiver.web.providers import ProvidersApi
from receiver.web.stats import StatsApi
from submitter.provider_settings import ProviderSettings
from submitter.providers import PROVIDERS

log = structlog.get_logger("receiver")


class Receiver:
    """
    One process of the service. `app` is the ASGI application; `parts` exist while its lifespan runs.

    `public_url` may change while it runs (a tunnel).
    """

    def __init__(
        self, settings: Settings, each: Mapping[str, ProviderSettings], *, roles: frozenset[Role] = EVERYTHING
    ) -> None:
        self.settings = settings
        self.roles = roles
        self.public_url = settings.public_url
        self.mounted_at = ""
        """The path under which a host has mounted the application, once that is known."""
        self.public_ports: set[int] = set()
        """Local ports whose requests come from outside, whatever host they name."""
        self.metrics = Metrics()
        self.stopping = asyncio.Event()
        self.credentials = Credentials.of(settings)
        self._each = each
        self._dashboard: Dashboard | None = None
        self._began_at = 0
        self.app = Starlette(
            middleware=[Middleware(CallbackRoute, callbacks=lambda: self.callbacks)] if Role.WEB in roles else [],
            lifespan=self._lifespan,
            exception_handlers={
                Problem: self._refused,
                404: self._not_found,
                405: self._not_allowed,
                OSError: self._internal_error,
                StoreError: self._internal_error,
                500: self._internal_error,  # anything else, which is raised again after the answer
            },
        )
        self.direct = DirectRoute(CALLBACK_PATH, lambda request: self.callbacks.take(request))
        """The route that our server may answer without `app`; useful only if `app` answers requests from outside."""
        self.app.router.redirect_slashes = False  # a redirect would carry a capability URL in its Location

    @property
    def base_url(self) -> str:
        """The prefix of addresses in answers: without a public URL, the path of this service on its host."""
        return self.public_url or self.mounted_at

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            with usable_database(self.settings.database_path):
                self.parts = await build(
                    self.settings,
                    self._each,
                    stack,
                    roles=self.roles,
                    credentials=self.credentials,
                    metrics=self.metrics,
                    stopping=self.stopping,
                    public_url=lambda: self.public_url,
                )
            self._began_at = await self.parts.events.newest()
            self._mount(self.parts)
            tasks = [asyncio.create_task(loop.run(), name=f"loop {loop.name}") for loop in self.parts.loops]
            self._warn()
            try:
                yield
            finally:
                self.stopping.set()
                await self.parts.stop(tasks)

    def _mount(self, parts: Parts) -> None:
        health = Health(
            parts.database,
            parts.loops,
            self.metrics,
            parts.statistics,
            tuple(parts.slots),
            from_outside=self._from_outside,
        )
        self.app.router.routes[:] = [*health.routes(), *(self._public(parts) if Role.WEB in self.roles else ())]

    def _public(self, parts: Parts) -> list[Route]:
        settings = self.settings
        self.callbacks = Callbacks(
            parts.intake,
            parts.store,
            {name: slot.provider for name, slot in parts.slots.items()},
            self.credentials.tokens,
            self.metrics,
            CallbackLimits(
                max_bytes=settings.max_callback_bytes,
                budget_bytes=settings.callback_budget,
                token_lifetime=timedelta(seconds=settings.job_timeout),
            ),
        )
        self.admissions = Admissions(
            parts.store,
            parts.blobs,
            parts.outbound,
            parts.slots,
            parts.presence,
            public_url=lambda: self.public_url,
            wakes=parts.wakes,
        )
        bearer = Bearer(self.credentials.api_tokens, read_only=self.credentials.read_tokens)
        api = self._api(parts)
        if settings.dashboard == "on":
            self._dashboard = self._pages(parts, bearer, api)
        return [
            Route("/callbacks/{provider}/{token}", self.callbacks, methods=["GET", "HEAD", "POST"]),
            *api(bearer),
            *(self._dashboard.routes() if self._dashboard else ()),
            *openapi.routes(PROVIDERS),
        ]

    def _pages(self, parts: Parts, bearer: Bearer, api: Callable[[Bearer], list[Route]]) -> Dashboard:
        return Dashboard(
            Api(api),
            parts.database,
            Sessions(self.credentials.tokens, bearer, SpentTokens(parts.database)),
            parts.slots,
            parts.pauses,
            Live(ChangeLog(parts.database), self.stopping),
            Pictures(self.admissions, parts.blobs, parts.store),
            public_url=lambda: self.public_url,
        )

    def _api(self, parts: Parts) -> Callable[[Bearer], list[Route]]:
        """Return the routes of `/v1`, for callers that a bearer token identifies."""
        jobs = JobsApi(
            store=parts.store,
            admissions=self.admissions,
            uploads=Uploads(parts.blobs),
            blobs=parts.blobs,
            slots=parts.slots,
            presenter=JobPresenter(lambda: self.base_url, parts.pauses),
            wakes=parts.wakes,
        )
        providers = ProvidersApi(
            store=parts.store,
            slots=parts.slots,
            queue_seconds=parts.submissions.done_in_seconds,
            pauses=parts.pauses,
            statistics=parts.statistics,
            wakes=parts.wakes,
            public_url=lambda: self.public_url,
        )
        endpoints = EndpointsApi(
            parts.endpoints,
            parts.delivery_log,
            parts.outbound.guard,
            base_url=lambda: self.base_url,
            changed=parts.notifier.endpoints_changed,
        )
        deliveries = DeliveriesApi(parts.endpoints, parts.delivery_log, changed=parts.wakes.notifier.set)
        images = ImagesApi(parts.store, parts.blobs, self.credentials.tokens, self.settings.blob_redirect)
        events = EventsApi(parts.events, parts.stream, tuple(parts.slots), began_at=self._began_at)
        stats = StatsApi(RollupTable(parts.database))
        apis = (jobs, images, providers, events, endpoints, deliveries, stats)
        return lambda bearer: [route for api in apis for route in api.routes(bearer)]

    async def _answer(self, request: Request, problem: Problem) -> Response:
        """Answer *problem*: as a page to a person who opened an address outside the API, otherwise as JSON."""
        if self._dashboard is not None and opens_a_page(request):
            try:
                return await self._dashboard.problem(request, problem)
            except Exception as exc:  # noqa: BLE001 (a page that can't be rendered must not replace the answer)
                log.error("page_failed", method=request.method, error=type(exc).__name__, detail=str(exc)[:300])
        return problem.to_response()

    async def _refused(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, Problem)
        return await self._answer(request, exc)

    async def _not_found(self, request: Request, exc: Exception) -> Response:
        return await self._answer(request, NOT_FOUND)

    async def _not_allowed(self, request: Request, exc: Exception) -> Response:
        # The router names the methods of one route only, and a path has a route for each of its methods.
        routes = [route for route in request.app.routes if isinstance(route, Route)]
        path = next((route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE), None)
        methods = {method for route in routes if route.path == path for method in route.methods or ()}
        problem = Problem(
            405,
            "method_not_allowed",
            "this method is not for this path",
            headers={"allow": ", ".join(sorted(methods))},
            remedy="/openapi.json lists what there is",
        )
        return await self._answer(request, problem)

    async def _internal_error(self, request: Request, exc: Exception) -> Response:
        """Answer 503 with `Retry-After`: the disk, the database or our own bug is not the caller's fault."""
        log.error("request_failed", method=request.method, error=type(exc).__name__, detail=str(exc)[:300])
        return await self._answer(request, busy("something went wrong on our side"))

    def _from_outside(self, request: Request) -> bool:
        """Return whether a request came by the public name, or by a port that a tunnel leads to."""
        if self.settings.public_metrics:
            return False
        server, host = request.scope.get("server"), request.url.hostname
        return (server is not None and server[1] in self.public_ports) or (
            host is not None and host == public_host(self.public_url)
        )

    def _warn(self) -> None:
        if self.public_url is None:
            log.warning("no_public_url", effect="jobs are sent without a callback and polled")
        configured = {name: slot.provider for name, slot in self.parts.slots.items() if slot.configured}
        for name, provider in configured.items():
            for warning in provider.warnings():
                log.warning(warning.code, provider=name, effect=warning.effect, remedy=warning.remedy)
        if not configured and Role.SUBMISSIONS in self.roles:
            log.warning("no_provider_configured", remedy="set FREEPIK_API_KEY or another provider's key")


def public_host(public_url: str | None) -> str | None:
    """Return the host of *public_url* if it is public: not an address of this machine or of a private network."""
    host = None if public_url is None else urlsplit(public_url).hostname
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return None
    with contextlib.suppress(ValueError):
        return host if ipaddress.ip_address(host).is_global else None
    return host
