"""Compare: the results of several providers for one picture, side by side, and the jobs for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.ids import is_id
from receiver.upstream.slots import ProviderSlot
from receiver.web.page.api import Api
from receiver.web.page.gate import Gate, new_key, to_page
from receiver.web.page.notices import notice_of, notice_query
from receiver.web.page.pictures import Pictures
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session
from receiver.web.problems import Problem

MOST_COMPARED = 8
INPUT = "input"
"""The name of the picture that was sent; the others are named by their job."""


@dataclass(frozen=True, slots=True)
class Side:
    """A picture for either side of the slider; `path` leads to it below the root of the pages."""

    name: str
    title: str
    path: str
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class ComparePage:
    """Results side by side, and the button that sends the picture to more providers."""

    gate: Gate
    pages: Pages
    api: Api
    slots: Mapping[str, ProviderSlot]
    pictures: Pictures

    def routes(self) -> list[Route]:
        return [
            Route("/compare", self.gate.page(self.show), methods=["GET"]),
            Route("/compare", self.gate.action(self.extend), methods=["POST"]),
        ]

    async def show(self, request: Request, session: Session) -> Response:
        """`GET /compare?job=…&job=…&left=…&right=…`."""
        query = request.query_params
        jobs = [await self.api.get(session.caller, f"/v1/jobs/{job_id}") for job_id in _chosen(query)]
        input_kept = bool(jobs) and await self.pictures.input_of(jobs[0]["id"]) is not None
        sides = self._sides(jobs, input_kept=input_kept)
        names = [job["provider"] for job in jobs]
        context = {
            "jobs": jobs,
            "slots": self.slots,
            "different": len({_identity(job) for job in jobs}) > 1,
            "input_kept": input_kept,
            "sides": sides,
            "pair": _pair(sides, query),
            "merits": merits(jobs),
            "others": [name for name, slot in self.slots.items() if slot.configured and name not in names],
            "room": MOST_COMPARED - len(jobs),
            "key": new_key(),
            "now": datetime.now(UTC),
            "done": notice_of(query),
        }
        return await self.pages.answer(request, session, "compare.html", context)

    async def extend(self, request: Request, session: Session, form: FormData) -> Response:
        """Send the picture of the first job to more providers, and compare the results."""
        job_ids = _chosen(form)
        if not job_ids:
            raise Problem(422, "no_such_job", "no job was named", field="job", remedy="begin at a job's page")
        first = await self.api.get(session.caller, f"/v1/jobs/{job_ids[0]}")
        names = [str(name) for name in form.getlist("provider")][: MOST_COMPARED - len(job_ids)]
        if not names:
            raise Problem(
                422, "no_provider", "no provider was chosen", field="provider", remedy="go back and choose at least one"
            )
        given = str(form.get("key", ""))[:64]
        key = given if given.isascii() and given.isprintable() else new_key()
        made: list[str] = []
        refused: dict[str, int] = {}
        for name in names:
            document = {"provider": name, "metadata": first["metadata"]}
            once = f"compare {key} {name}"
            try:
                job = await self.pictures.admit_again(first["id"], document, token_id=session.caller.token_id, key=once)
                made.append(job.id)
            except Problem as exc:
                if not made and name == names[-1]:
                    raise
                refused[exc.code] = refused.get(exc.code, 0) + 1
        return to_page(request, f"{address([*job_ids, *made])}&{notice_query('compare', refused=refused)}")

    def _sides(self, jobs: Sequence[Mapping[str, Any]], *, input_kept: bool) -> list[Side]:
        """Return the picture that was sent, and each kept result."""
        sides = []
        if input_kept:
            given = jobs[0]["input"]
            sides.append(Side(INPUT, "Before", f"jobs/{jobs[0]['id']}/input", given["width"], given["height"]))
        names = [job["provider"] for job in jobs]
        for job in jobs:
            if job["images"] and job["images"][0]["kept"]:
                image = job["images"][0]
                title = self.slots[job["provider"]].provider.title
                if names.count(job["provider"]) > 1:
                    title = f"{title} {job['id'][-4:]}"
                sides.append(Side(job["id"], title, f"jobs/{job['id']}/images/0", image["width"], image["height"]))
        return sides


def address(job_ids: Sequence[str]) -> str:
    """Return the address of the page that compares these jobs."""
    return f"compare?{urlencode([('job', job_id) for job_id in job_ids])}"


def merits(jobs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the merits of each job by its id: where at least two have the figure, and not all are equal."""
    figures: dict[str, dict[str, Any]] = {"fastest": {}, "largest": {}}
    units = {job["cost"]["unit"] for job in jobs if job["cost"]}
    if len(units) == 1:  # credits and money can't be compared
        figures["cheapest"] = {job["id"]: Decimal(job["cost"]["amount"]) for job in jobs if job["cost"]}
    for job in jobs:
        if job["state"] != "succeeded":
            continue
        if job["sent_at"] and job["finished_at"]:
            figures["fastest"][job["id"]] = _moment(job["finished_at"]) - _moment(job["sent_at"])
        if job["images"] and job["images"][0]["width"]:
            figures["largest"][job["id"]] = -job["images"][0]["width"] * job["images"][0]["height"]
    best: dict[str, list[str]] = {job["id"]: [] for job in jobs}
    for merit, values in figures.items():
        if len(set(values.values())) > 1:
            for job_id, value in values.items():
                if value == min(values.values()):
                    best[job_id].append(merit)
    return best


def _pair(sides: Sequence[Side], query: QueryParams) -> tuple[Side, Side] | None:
    """Return the pictures on the left and right: the chosen ones, or else the first two."""
    if not sides:
        return None
    by_name = {side.name: side for side in sides}
    left = by_name.get(query.get("left", ""), sides[0])
    return left, by_name.get(query.get("right", ""), next((side for side in sides if side is not left), left))


def _chosen(given: QueryParams | FormData) -> list[str]:
    """Return the jobs that are named, in order, without duplicates."""
    named = dict.fromkeys(str(name) for name in given.getlist("job"))
    return [name for name in named if is_id("job", name)][:MOST_COMPARED]


def _identity(job: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return values that are equal for jobs with the same picture."""
    return tuple((job["input"] or {}).get(name) for name in ("width", "height", "bytes"))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
