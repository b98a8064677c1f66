"""A job: its images, its timeline, its evidence, its deliveries, and the actions on it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.store.database import Database
from receiver.store.timeline import Line, explain
from receiver.upstream.slots import ProviderSlot
from receiver.web.page.api import Api
from receiver.web.page.bodies import body_of
from receiver.web.page.gate import Gate, new_key, to_page
from receiver.web.page.notices import notice_of
from receiver.web.page.rendering import Pages
from receiver.web.page.sessions import Session
from receiver.web.problems import Problem

_MOST_DELIVERIES = 30
_MOST_EVIDENCE = 100
_RESUBMITTABLE = ("failed", "expired", "canceled", "unconfirmed")
_SENT = ("sending", "running", "unconfirmed")


@dataclass(frozen=True, slots=True)
class Step:
    """
    A line of the timeline, and the time since the line before it.

    Consecutive lines about deliveries are one step: `folded` holds all of them.
    """

    line: Line
    gap_seconds: float | None
    folded: Sequence[Line] = ()


@dataclass(frozen=True, slots=True)
class JobPage:
    """The page of a job, its pictures, and its buttons."""

    gate: Gate
    pages: Pages
    api: Api
    database: Database
    slots: Mapping[str, ProviderSlot]
    public_url: Callable[[], str | None]

    def routes(self) -> list[Route]:
        gate = self.gate
        return [
            Route("/jobs/{id}", gate.page(self.show), methods=["GET"]),
            Route("/jobs/{id}/input", gate.page(self.input, shared=False), methods=["GET"]),
            Route("/jobs/{id}/images/{n}", gate.page(self.image, shared=False), methods=["GET"]),
            Route("/jobs/{id}/images/{n}/thumbnail", gate.page(self.thumbnail, shared=False), methods=["GET"]),
            Route("/jobs/{id}/poll", gate.action(self._action(self._poll, "poll")), methods=["POST"]),
            Route("/jobs/{id}/cancel", gate.action(self._action(self._cancel, "cancel")), methods=["POST"]),
            Route("/jobs/{id}/resubmit", gate.action(self.resubmit), methods=["POST"]),
        ]

    async def show(self, request: Request, session: Session) -> Response:
        now = datetime.now(UTC)
        job = await self._job(request, session)
        path = f"/v1/jobs/{job['id']}"
        timeline = await explain(self.database, job["id"], now)
        assert timeline is not None
        evidence = await self.api.get(session.caller, f"{path}/evidence", limit=_MOST_EVIDENCE)
        deliveries = await self.api.get(session.caller, "/v1/deliveries", job=job["id"], limit=_MOST_DELIVERIES)
        context = {
            "job": job,
            "now": now,
            "provider": self.slots[job["provider"]].provider,
            "steps": _steps(timeline.past),
            "next": timeline.next,
            "phases": _phases(job, now),
            "evidence": [(item, body_of(item)) for item in evidence["items"]],
            "more_evidence": evidence["next"],
            "deliveries": [
                await self.api.get(session.caller, f"/v1/deliveries/{delivery['id']}")
                for delivery in deliveries["items"]
            ],
            "more_deliveries": deliveries["next"],
            "can": self._can(job),
            "key": new_key(),
            "curl": _curl(job, self.public_url() or str(request.base_url).rstrip("/")),
            "done": notice_of(request.query_params),
        }
        return await self.pages.answer(request, session, "job.html", context)

    async def input(self, request: Request, session: Session) -> Response:
        return self.api.forwarded(request, session.caller, f"/v1/jobs/{request.path_params['id']}/input")

    async def image(self, request: Request, session: Session) -> Response:
        path = f"/v1/jobs/{request.path_params['id']}/images/{request.path_params['n']}"
        return self.api.forwarded(request, session.caller, path)

    async def thumbnail(self, request: Request, session: Session) -> Response:
        path = f"/v1/jobs/{request.path_params['id']}/images/{request.path_params['n']}/thumbnail"
        return self.api.forwarded(request, session.caller, path)

    async def resubmit(self, request: Request, session: Session, form: FormData) -> Response:
        asked = {"may_pay_twice": True} if form.get("may_pay_twice") == "true" else {}
        key = str(form.get("key", ""))[:64]
        path = f"/v1/jobs/{request.path_params['id']}/resubmit"
        again = await self.api.post(session.caller, path, asked, key=key if key.isascii() and key.isprintable() else "")
        return to_page(request, f"jobs/{again['id']}?done=resubmit")

    async def _poll(self, session: Session, job_id: str, form: FormData) -> None:
        await self.api.post(session.caller, f"/v1/jobs/{job_id}/poll")

    async def _cancel(self, session: Session, job_id: str, form: FormData) -> None:
        asked = {"abandon": True} if form.get("abandon") == "true" else {}
        await self.api.post(session.caller, f"/v1/jobs/{job_id}/cancel", asked)

    def _action(
        self, act: Callable[[Session, str, FormData], Awaitable[None]], name: str
    ) -> Callable[[Request, Session, FormData], Awaitable[Response]]:
        async def handle(request: Request, session: Session, form: FormData) -> Response:
            job_id = request.path_params["id"]
            await act(session, job_id, form)
            return to_page(request, "" if form.get("back") == "overview" else f"jobs/{job_id}?done={name}")

        return handle

    async def _job(self, request: Request, session: Session) -> Any:
        try:
            return await self.api.get(session.caller, f"/v1/jobs/{request.path_params['id']}")
        except Problem as exc:
            raise Problem(exc.status, exc.code, exc.detail, remedy="look for it in the list of jobs") from exc

    def _can(self, job: Mapping[str, Any]) -> dict[str, bool]:
        """Return the buttons that apply."""
        pollable = self.slots[job["provider"]].provider.pollable and job["remote_id"] is not None
        unkept = job["state"] == "succeeded" and any(image["state"] in ("wanted", "lost") for image in job["images"])
        return {
            "poll": pollable and (job["state"] in ("running", "unconfirmed") or unkept),
            "cancel": job["state"] == "queued",
            "abandon": job["state"] in _SENT,
            "resubmit": job["state"] in _RESUBMITTABLE,
        }


def _steps(lines: Iterable[Line]) -> list[Step]:
    steps: list[Step] = []
    before: datetime | None = None
    for delivery, group in groupby(lines, lambda line: line.what == "delivery"):
        for several in [list(group)] if delivery else [[line] for line in group]:
            line = several[0]
            gap = None if before is None or line.at is None else (line.at - before).total_seconds()
            steps.append(Step(line, gap, several if delivery else ()))
            before = several[-1].at or before
    return steps


def _phases(job: Mapping[str, Any], now: datetime) -> list[dict[str, Any]]:
    """Return how long the job waited to be sent, and how long its provider took, for a bar of two parts."""
    created = datetime.fromisoformat(job["created_at"])
    sent = job["sent_at"] and datetime.fromisoformat(job["sent_at"])
    finished = job["finished_at"] and datetime.fromisoformat(job["finished_at"])
    waited = ((sent or finished or now) - created).total_seconds()
    phases: list[dict[str, Any]] = [
        {"name": "in the queue", "seconds": max(waited, 0.0), "open": sent is None and finished is None}
    ]
    if sent is not None:
        took = ((finished or now) - sent).total_seconds()
        phases.append({"name": "at the provider", "seconds": max(took, 0.0), "open": finished is None})
    whole = sum(phase["seconds"] for phase in phases) or 1.0
    at = 0.0
    for phase in phases:
        phase["x"], phase["width"] = round(1000 * at / whole, 1), round(1000 * phase["seconds"] / whole, 1)
        at += phase["seconds"]
    return phases


def _curl(job: Mapping[str, Any], origin: str) -> dict[str, str]:
    """Return commands that show the job, and that send a similar one."""
    asked = {
        "provider": job["provider"],
        **{name: job[name] for name in ("options", "metadata", "notify_url") if job[name]},
    }
    name = ((job.get("input") or {}).get("file_name") or "picture.jpg").replace("/", "_")
    header = '-H "Authorization: Bearer $TOKEN"'
    document = json.dumps(asked, ensure_ascii=False)
    return {
        "show": f"curl {header} \\\n  {shlex.quote(origin + '/v1/jobs/' + job['id'])}",
        "send": f"curl {header} \\\n  -F {shlex.quote('job=' + document)} \\\n"
        f"  -F {shlex.quote('image=@' + name)} \\\n  {shlex.quote(origin + '/v1/jobs')}",
    }
