"""
Bulk actions on every job that matches a filter: counted first, and after a confirmation done to the counted jobs only.

Done in rounds of at most `MOST_AT_ONCE` jobs; a page says how many are left for another round.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from receiver.domain.ids import is_id
from receiver.web.auth import Caller
from receiver.web.page.api import Api
from receiver.web.problems import Problem

MOST_AT_ONCE = 1000
_MOST_COUNTED = 5000


@dataclass(frozen=True, slots=True)
class BulkAction:
    """A named action; `states` are those of the jobs that it applies to."""

    name: str
    title: str
    warning: str
    states: Sequence[str]


ACTIONS = {
    action.name: action
    for action in (
        BulkAction(
            "cancel",
            "Cancel",
            "Jobs that wait in the queue are canceled. Jobs that were sent already run on.",
            ("queued",),
        ),
        BulkAction(
            "resubmit",
            "Resubmit",
            "Each becomes a new job with the same picture and options, and its provider bills it again."
            " Unconfirmed jobs are left out, since they may be running.",
            ("failed", "expired", "canceled"),
        ),
        BulkAction(
            "replay",
            "Replay deliveries",
            "All deliveries about these jobs that have ended go out again, with the event ids that they had.",
            ("queued", "sending", "running", "succeeded", "failed", "expired", "canceled", "unconfirmed"),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Found:
    """The jobs that a confirmation asks about. `before` is a cursor that leaves out later ones."""

    count: int
    more: bool
    before: str


@dataclass(slots=True)
class Done:
    """The result of a round; `refused` are counts by the code of the problem."""

    done: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    left: bool = False


class Bulk:
    """Uses the API as a person would, job by job."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def count(self, caller: Caller, action: BulkAction, filters: Mapping[str, str]) -> Found:
        """Count the jobs that match *filters* and can be acted on now."""
        count, newest = 0, ""
        async for job in self._jobs(caller, action, filters, None, at_least=_MOST_COUNTED):
            newest = newest or job["id"]
            count += 1
        return Found(count, count >= _MOST_COUNTED, newest)

    async def run(self, caller: Caller, action: BulkAction, filters: Mapping[str, str], newest: str) -> Done:
        """Act on the job *newest* and older ones."""
        if not is_id("job", newest):
            raise Problem(422, "invalid_form", "the form can't be read", remedy="go back and send it again")
        done, seen = Done(), 0
        async for job in self._jobs(caller, action, filters, newest, at_least=MOST_AT_ONCE + 1):
            seen += 1
            if seen > MOST_AT_ONCE:
                done.left = True
                break
            try:
                done.done += await self._act(caller, action, job, newest)
            except Problem as exc:
                done.refused[exc.code] = done.refused.get(exc.code, 0) + 1
        return done

    async def _act(self, caller: Caller, action: BulkAction, job: Any, key: str) -> int:
        path = f"/v1/jobs/{job['id']}"
        if action.name == "cancel":
            await self._api.post(caller, f"{path}/cancel")
            return 1
        if action.name == "resubmit":
            # A confirmation that is sent twice makes no second job.
            await self._api.post(caller, f"{path}/resubmit", key=f"bulk {key} {job['id']}")
            return 1
        ended = await self._api.get(caller, "/v1/deliveries", job=job["id"], state="delivered,given_up", limit=200)
        for delivery in ended["items"]:
            await self._api.post(caller, f"/v1/deliveries/{delivery['id']}/replay")
        return len(ended["items"])

    async def _jobs(
        self, caller: Caller, action: BulkAction, filters: Mapping[str, str], newest: str | None, *, at_least: int
    ) -> AsyncIterator[Any]:
        """Yield up to *at_least* jobs and the rest of their page, newest first."""
        asked = [state for state in filters.get("state", "").split(",") if state]
        states = [state for state in action.states if not asked or state in asked]
        if not states:
            return
        cursor, seen = "", 0
        while seen < at_least:
            query = {**filters, "state": ",".join(states), "cursor": cursor, "limit": 200}
            page = await self._api.get(caller, "/v1/jobs", **query)
            for job in page["items"]:
                if newest is None or job["id"] <= newest:
                    seen += 1
                    yield job
            if page["next"] is None:
                return
            cursor = page["next"]
