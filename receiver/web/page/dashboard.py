"""The composition of the dashboard: its parts and their routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from receiver.store.database import Database
from receiver.store.rollups import RollupTable
from receiver.upstream.pauses import Pauses
from receiver.upstream.slots import ProviderSlot
from receiver.web.accept import accepted
from receiver.web.page.api import Api
from receiver.web.page.attempts import Attempts
from receiver.web.page.bulk import Bulk
from receiver.web.page.compare import ComparePage
from receiver.web.page.deliveries import DeliveriesPage
from receiver.web.page.endpoints import EndpointsPage
from receiver.web.page.gate import Gate
from receiver.web.page.hourly_sums import HourlySums
from receiver.web.page.job import JobPage
from receiver.web.page.jobs import JobsPage
from receiver.web.page.live import MOST_PAGES, Live
from receiver.web.page.overview import Overview
from receiver.web.page.pictures import Pictures
from receiver.web.page.providers import ProvidersPage
from receiver.web.page.rendering import Pages, here_of
from receiver.web.page.send import SendPage
from receiver.web.page.sessions import Session, Sessions
from receiver.web.page.shared import SharedFragments
from receiver.web.page.sign_in import SignIn
from receiver.web.page.static_files import StaticFiles
from receiver.web.problems import PROBLEM_JSON, Problem, busy

_NOT_PAGES = ("v1", "callbacks", "inputs", "healthz", "readyz", "metrics", "openapi.json")
_MOST_SEGMENTS = 16
"""The addresses in a page are relative to it, and grow with its depth; no page is deeper than four."""
_FOR_PEOPLE = {
    "not_found": ("there is no page at this address", "check the address, or begin at the overview"),
    "method_not_allowed": ("this address can’t be opened by itself", "use the buttons of the pages"),
    "no_such_job": ("there is no such job", "look for it in the list of jobs"),
}
"""What the API says of an address and what to do, in the words of a page."""


@dataclass(slots=True)
class Dashboard:
    """The parts behind the pages. *live* is the stream of changes; *public_url* may change while they are served."""

    api: Api
    database: Database
    sessions: Sessions
    slots: Mapping[str, ProviderSlot]
    pauses: Pauses
    live: Live
    pictures: Pictures
    public_url: Callable[[], str | None]
    _pages: Pages = field(default_factory=Pages, init=False)
    _gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        shared = SharedFragments(lambda: self.live.version)
        self._gate = Gate(self.sessions, self._pages, shared, public_url=self.public_url)

    def routes(self) -> list[Route]:
        """Return all routes; none of them is part of the API's description."""
        pages, gate = self._pages, self._gate
        made = (
            StaticFiles(),
            SignIn(gate, pages, self.sessions, Attempts()),
            Overview(
                gate, pages, self.api, self.database, self.slots, self.pauses, HourlySums(RollupTable(self.database))
            ),
            JobsPage(gate, pages, self.api, self.slots, Bulk(self.api)),
            JobPage(gate, pages, self.api, self.database, self.slots, self.public_url),
            DeliveriesPage(gate, pages, self.api),
            EndpointsPage(gate, pages, self.api, tuple(self.slots)),
            ProvidersPage(gate, pages, self.api, self.slots),
            SendPage(gate, pages, self.slots, self.pictures, self.public_url),
            ComparePage(gate, pages, self.api, self.slots, self.pictures),
        )
        routes = [route for part in made for route in part.routes()]
        routes.append(Route("/live", gate.page(_stream_of(self.live, gate), shared=False), methods=["GET"]))
        for route in routes:
            route.include_in_schema = False
        return routes

    async def problem(self, request: Request, problem: Problem) -> Response:
        """Return the page of *problem*, for a request that no page answers."""
        detail, remedy = _FOR_PEOPLE.get(problem.code, (problem.detail, problem.remedy))
        shown = Problem(problem.status, problem.code, detail, remedy=remedy, headers=problem.headers)
        return await self._gate.problem(request, shown)


def opens_a_page(request: Request) -> bool:
    """Return whether a person opens the address in a browser: outside the API, with HTML before JSON in `Accept`."""
    here = here_of(request)
    if here.partition("/")[0] in _NOT_PAGES or here.count("/") > _MOST_SEGMENTS:
        return False
    wanted = accepted(request)
    html = wanted.get("text/html", 0.0)
    return html > 0 and html >= max(wanted.get(name, 0.0) for name in ("application/json", PROBLEM_JSON))


def _stream_of(live: Live, gate: Gate) -> Callable[[Request, Session], Awaitable[Response]]:
    async def stream(request: Request, session: Session) -> Response:
        """`GET /live`: the stream of changes, until the session ends."""
        if live.pages >= MOST_PAGES:
            raise busy(f"{MOST_PAGES} pages are open already")

        async def lasts() -> bool:
            return await gate.session(request) is not None

        headers = {"x-accel-buffering": "no", "cache-control": "no-store"}
        return StreamingResponse(live.frames(lasts), headers=headers, media_type="text/event-stream")

    return stream
