"""
The bench: answers to calls and the lifecycle of tasks, for any provider.

A submit call is accepted or refused in one place (`submit`), and a task is recorded exactly when it is accepted, before
any answer: what the client learns of it, if anything, is decided after that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from submitter.sandbox.background import Background
from submitter.sandbox.broken_answers import Cut, bad_gateway, unreadable
from submitter.sandbox.callbacks import Announcer
from submitter.sandbox.faults import Dice, Faults
from submitter.sandbox.files import File, Files
from submitter.sandbox.outbound import Outbound
from submitter.sandbox.settings import Settings
from submitter.sandbox.stand_in import CallingStandIn, Refused, StandIn
from submitter.sandbox.tasks import Failing, Order, RemoteTask, TaskLog
from submitter.sandbox.upscaling import CONTENT_TYPES, SUFFIXES, NotAnImage, Studio, TooLarge

_EARLY_PATIENCE_SECONDS = 15.0
_LONGEST_ANSWER_SECONDS = 5.0
"""A task starts when its answer was sent, or this long after acceptance at the latest."""


@dataclass(frozen=True, slots=True)
class _AnswerFaults:
    """The faults in the answer to an accepted submit call."""

    early: bool
    """The task runs at once, and its callbacks are sent before the answer."""
    late_seconds: float
    lost: str | None
    """The fault that replaces the answer."""
    unreadable: bool

    @property
    def task_starts_at_once(self) -> bool:
        return self.early or self.late_seconds > 0 or self.lost is not None


class Bench:
    """Tasks, files, faults and the background work of one sandbox."""

    def __init__(self, settings: Settings, faults: Faults, origin: str | None) -> None:
        self.settings = settings
        self.origin = origin
        self.first_faults = faults
        self.dice = Dice(faults, settings.seed)
        self.tasks = TaskLog()
        self.files = Files()
        self.studio = Studio()
        self.outbound = Outbound()
        self.background = Background()
        self.announcer = Announcer(settings, self.dice, self.outbound, self.background)
        self.calls: Counter[tuple[str, str]] = Counter()
        """The number of submit and status calls to each provider, refused ones included."""
        self._accepted: Counter[str] = Counter()

    # --- Calls ------------------------------------------------------------------------------------------------------

    async def submit(self, stand_in: StandIn, request: Request) -> Response:
        """
        Answer a submit call.

        The faults before acceptance come first, then the provider's own checks. Then the task exists and runs, and the
        faults after acceptance decide what the client learns of it.
        """
        self.calls[stand_in.name, "submit"] += 1
        if self.dice.strikes(stand_in.name, "reset_before"):
            return Cut()
        try:
            await request.body()
            if fault := self.dice.first(stand_in.name, _GATE):
                raise Refused(self._fault_response(stand_in, fault))
            stand_in.admit(request)
            order = await stand_in.read(request)
        except Refused as refused:
            return refused.response
        except ClientDisconnect:
            return Cut()
        task = self.accept(stand_in, order, origin=self.origin or f"{request.url.scheme}://{request.url.netloc}")
        return await self._answer(stand_in, request, task)

    async def status(self, stand_in: StandIn, request: Request) -> Response:
        """Answer a status call: with a fault, or with the provider's account of the task."""
        self.calls[stand_in.name, "status"] += 1
        if self.dice.strikes(stand_in.name, "status_reset"):
            return Cut()
        fault = self.dice.first(stand_in.name, _STATUS_GATE)
        if fault == "status_unreadable":
            return unreadable()
        try:
            if fault is not None:
                raise Refused(self._fault_response(stand_in, fault.removeprefix("status_")))
            stand_in.admit(request)
        except Refused as refused:
            return refused.response
        return await stand_in.looked_up(request)

    # --- Acceptance and answers -------------------------------------------------------------------------------------

    def accept(
        self, stand_in: StandIn, order: Order, *, origin: str, id: str | None = None, triggered: bool = False
    ) -> RemoteTask:
        """Record a task. From then on it exists."""
        number = self._accepted[stand_in.name] = self._accepted[stand_in.name] + 1
        seconds = random.Random(f"{self.settings.seed}/{stand_in.name}/turnaround/{number}")
        task = RemoteTask(
            id=id or stand_in.new_id(),
            provider=stand_in.name,
            order=order,
            origin=origin,
            number=number,
            accepted_at=datetime.now(UTC),
            turnaround_seconds=seconds.uniform(*self.settings.turnaround_seconds),
            state="",
            billed=order.billed and not triggered,
            triggered=triggered,
        )
        task.enter(stand_in.running[0])
        self.tasks.add(task)
        return task

    async def _answer(self, stand_in: StandIn, request: Request, task: RemoteTask) -> Response:
        """Start *task*, and answer with its state at acceptance, however late, or with a fault."""
        stuck = self.dice.strikes(stand_in.name, "stuck", task.number)
        answer = None if stand_in.synchronous else stand_in.accepted(request, task)
        faults = self._answer_faults(stand_in, task)
        if faults.early:
            task.turnaround_seconds = 0
        start = asyncio.Event()
        life = self.background.spawn(self._live(stand_in, task, stuck=stuck, start=start), task)
        if answer is None or faults.task_starts_at_once:
            start.set()
        else:
            answer.background = BackgroundTask(_set, start)  # runs once the answer was sent
        if faults.early:
            await self._callbacks_tried(task, life)
        if faults.lost:
            return await self._lost(faults.lost, stand_in, request)
        if faults.late_seconds:
            await self.background.until(asyncio.Event(), faults.late_seconds)
        if answer is None and await self.background.until(task.ended, None):
            answer = stand_in.accepted(request, task)
        if answer is None:  # the sandbox ended first
            return Cut()
        return unreadable(answer.background) if faults.unreadable else answer

    def _answer_faults(self, stand_in: StandIn, task: RemoteTask) -> _AnswerFaults:
        name, number = stand_in.name, task.number
        calls = isinstance(stand_in, CallingStandIn) and task.callback_url is not None
        lost = self.dice.first(name, _LOST_ANSWERS, number)
        return _AnswerFaults(
            early=calls and self.dice.strikes(name, "early", number),
            late_seconds=self.dice.seconds(name, "late_answer_seconds"),
            lost=lost,
            unreadable=lost is None and self.dice.strikes(name, "unreadable", number),
        )

    async def _lost(self, fault: str, stand_in: StandIn, request: Request) -> Response:
        if fault == "accept_then_bad_gateway":
            return self._fault_response(stand_in, "bad_gateway")
        if fault == "hang":
            gone = asyncio.Event()
            watch = asyncio.ensure_future(_watch(request, gone))
            try:
                await self.background.until(gone, self.dice.seconds(stand_in.name, "hang_seconds"))
            finally:
                watch.cancel()
        return Cut()

    async def _callbacks_tried(self, task: RemoteTask, life: asyncio.Task[None]) -> None:
        deadline = time.monotonic() + _EARLY_PATIENCE_SECONDS
        await asyncio.wait({life}, timeout=_EARLY_PATIENCE_SECONDS)
        for callback in list(task.callbacks):
            await self.background.until(callback.tried, max(0.0, deadline - time.monotonic()))

    def _fault_response(self, stand_in: StandIn, fault: str) -> Response:
        if fault == "bad_gateway":
            return bad_gateway()
        response = stand_in.fault_response(fault)
        if fault in ("busy", "unavailable"):
            response.headers["retry-after"] = f"{self.dice.seconds(stand_in.name, 'retry_after_seconds'):g}"
        return response

    # --- The lifecycle of a task ------------------------------------------------------------------------------------

    async def _live(self, stand_in: StandIn, task: RemoteTask, *, stuck: bool, start: asyncio.Event) -> None:
        await self.background.until(start, _LONGEST_ANSWER_SECONDS)
        due = time.monotonic() + task.turnaround_seconds
        announce = self.announcer.announcements(stand_in, task)
        fails = self.dice.strikes(stand_in.name, "fail", task.number)
        announce(stand_in.running[0])
        for state in stand_in.running[1:]:
            await asyncio.sleep(task.turnaround_seconds / (len(stand_in.running) + 1))
            task.enter(state)
            announce(state)
        self.announcer.forge(stand_in, task)
        if stuck:
            self.announcer.release(task)
            return
        outcome = task.order.outcome or ("failed" if fails else "succeeded")
        try:
            if outcome == "failed":
                raise Failing("", "")
            await self.work(stand_in, task)
        except Failing as failing:
            task.failure = failing
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        self.finish(stand_in, task)
        announce(task.state)
        self.announcer.release(task)
        task.ended.set()

    async def work(self, stand_in: StandIn, task: RemoteTask) -> None:
        """Make the result; raises `Failing`, with our own code `unreachable`, `undecodable` or `too_large`, if any."""
        source = task.order.source
        data = source if isinstance(source, bytes) else await self.outbound.fetch(source)
        try:
            target = task.order.target(await self.studio.inspect(data))
            result = await self.studio.upscale(data, target)
        except NotAnImage as exc:
            raise Failing("undecodable", "the image could not be decoded") from exc
        except TooLarge as exc:
            raise Failing("too_large", "the result would be too large") from exc
        lifetime = self.settings.link_seconds.get(stand_in.name, stand_in.link_seconds)
        now = time.time()
        task.files = [
            self.files.keep(
                File(
                    data=result,
                    content_type=CONTENT_TYPES[target.format],
                    width=target.width,
                    height=target.height,
                    name=stand_in.file_name(task, SUFFIXES[target.format]),
                    created_at=now,
                    expires_at=now + lifetime,
                    gone_status=stand_in.gone_status,
                    admits=type(stand_in).link_admits,
                    dead=self.dice.strikes(stand_in.name, "dead_links", task.number),
                )
            )
        ]

    def finish(self, stand_in: StandIn, task: RemoteTask) -> None:
        task.finished_at = datetime.now(UTC)
        task.enter(stand_in.succeeded if task.failure is None else stand_in.failed)

    async def put(self, stand_in: StandIn, task: RemoteTask, state: str) -> None:
        """Put *task*, which must not be running, into exactly *state*, with a result if that state has any."""
        task.failure, task.finished_at = None, None
        if state == stand_in.succeeded and not task.files:
            await self.work(stand_in, task)
        if state in (stand_in.succeeded, stand_in.failed):
            task.failure = Failing("", "") if state == stand_in.failed else None
            self.finish(stand_in, task)
            task.ended.set()
        else:
            task.enter(state)

    # --- Beginning and end ------------------------------------------------------------------------------------------

    async def reset(self) -> None:
        """Forget all tasks and files, end all delayed answers, and restore the initial faults."""
        await self.background.close()
        self.background.open()
        self.tasks.clear()
        self.files.clear()
        self.calls.clear()
        self._accepted.clear()
        self.dice.reset(self.first_faults)

    async def aclose(self) -> None:
        """End all background work and all delayed answers. Idempotent."""
        await self.background.close()
        await self.outbound.aclose()
        self.studio.close()


_GATE = ("bad_gateway", "unavailable", "busy", "server_error", "bad_key", "no_credit")
_STATUS_GATE = ("status_bad_gateway", "status_unavailable", "status_busy", "status_server_error", "status_unreadable")
_LOST_ANSWERS = ("accept_then_reset", "accept_then_bad_gateway", "hang")


async def _set(event: asyncio.Event) -> None:
    event.set()


async def _watch(request: Request, gone: asyncio.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
