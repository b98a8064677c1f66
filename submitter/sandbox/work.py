"""
The bench: how a task lives, whichever provider it belongs to.

A submit call is accepted or refused in one place (`submit`), and a task is recorded exactly when it is accepted, before
anything is answered: what the client hears of it, if anything, is decided after that. Everything that runs in the
background is held in one set and ends with `aclose`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from submitter.sandbox.callbacks import Announcer
from submitter.sandbox.faults import Dice, Faults
from submitter.sandbox.files import File, Files
from submitter.sandbox.outbound import Outbound
from submitter.sandbox.stand_in import CallingStandIn, Refused, StandIn
from submitter.sandbox.tasks import Failing, Order, RemoteTask
from submitter.sandbox.upscaling import CONTENT_TYPES, SUFFIXES, NotAnImage, Studio, TooLarge

CUT_EXTENSION = "sandbox.cut"
"""ASGI extension of our server: call it to reset the connection."""

_EARLY_PATIENCE_SECONDS = 15.0
_LONGEST_ANSWER_SECONDS = 5.0
"""A task starts when its answer has left; this long after acceptance at the latest."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a sandbox is set up with; the stand-ins read their own parts of it."""

    api_keys: Mapping[str, str] = field(repr=False)
    freepik_webhook_secret: str = field(repr=False)
    freepik_webhook_secret_encoding: str
    freepik_api_key_header: str
    upscayl_older_words: bool
    turnaround_seconds: tuple[float, float]
    link_seconds: Mapping[str, float]
    retry_scale: float
    callback_timeout_scale: float
    seed: int


class Cut(Response):
    """Instead of an answer, the connection is reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cut = scope.get("extensions", {}).get(CUT_EXTENSION)
        if cut is None:
            raise ConnectionResetError("the sandbox cut this connection")
        cut()
        while (await receive())["type"] != "http.disconnect":
            pass


class Bench:
    """Tasks, files, faults and the background work of one sandbox."""

    def __init__(self, settings: Settings, faults: Faults, origin: str | None) -> None:
        self.settings = settings
        self.origin = origin
        self.first_faults = faults
        self.tasks: list[RemoteTask] = []
        self.files = Files()
        self.studio = Studio()
        self.outbound = Outbound()
        self.closing = asyncio.Event()
        self._by_id: dict[tuple[str, str], RemoteTask] = {}
        self._background: dict[asyncio.Task[None], RemoteTask | None] = {}
        self.announcer = Announcer(self)
        self.calls: Counter[tuple[str, str]] = Counter()
        """How often each provider's submit and status calls came, refused ones included."""
        self._fresh(faults)

    def set_faults(self, faults: Faults) -> None:
        """Replace all faults; counts and random sequences start anew."""
        self.dice = Dice(faults, self.settings.seed)

    def _fresh(self, faults: Faults) -> None:
        self.set_faults(faults)
        self._accepted: Counter[str] = Counter()

    # --- Calls ------------------------------------------------------------------------------------------------------

    async def submit(self, stand_in: StandIn, request: Request) -> Response:
        """A submit call from the first fault to the last."""
        self.calls[stand_in.name, "submit"] += 1
        if self.dice.strikes(stand_in.name, "reset_before"):
            return Cut()
        try:
            await request.body()
            if fault := self.dice.first(stand_in.name, _GATE):
                return self._fault_response(stand_in, fault)
            stand_in.admit(request)
            order = await stand_in.read(request)
        except Refused as refused:
            return refused.response
        except ClientDisconnect:
            return Cut()
        task = self.accept(stand_in, order, origin=self._origin_of(request))
        return await self._answer(stand_in, request, task)

    async def status(self, stand_in: StandIn, request: Request) -> Response | None:
        """What a fault answers to a status call instead of the truth; None: go on."""
        self.calls[stand_in.name, "status"] += 1
        if self.dice.strikes(stand_in.name, "status_reset"):
            return Cut()
        fault = self.dice.first(stand_in.name, _STATUS_GATE)
        if fault == "status_unreadable":
            return _unreadable()
        return None if fault is None else self._fault_response(stand_in, fault.removeprefix("status_"))

    def task(self, provider: str, id: str) -> RemoteTask | None:
        return self._by_id.get((provider, id))

    # --- Acceptance and answers -------------------------------------------------------------------------------------

    def accept(
        self, stand_in: StandIn, order: Order, *, origin: str, id: str | None = None, triggered: bool = False
    ) -> RemoteTask:
        """Record a task. From here on it exists."""
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
        self.tasks.append(task)
        self._by_id[stand_in.name, task.id] = task
        return task

    async def _answer(self, stand_in: StandIn, request: Request, task: RemoteTask) -> Response:
        """What the client hears of an accepted task; it tells the state at acceptance, however late it leaves."""
        name = stand_in.name
        stuck = self.dice.strikes(name, "stuck", task.number)
        answer = None if stand_in.synchronous else stand_in.accepted(request, task)
        calls = isinstance(stand_in, CallingStandIn) and task.callback_url is not None
        early = calls and self.dice.strikes(name, "early", task.number)
        lost = self.dice.first(name, _LOST_ANSWERS, task.number)
        late = self.dice.seconds(name, "late_answer_seconds")
        unreadable = lost is None and self.dice.strikes(name, "unreadable", task.number)
        if early:
            task.turnaround_seconds = 0
        at_once = asyncio.Event()
        life = self.spawn(self._live(stand_in, task, stuck=stuck, start=at_once), task)
        if early or lost or late or answer is None:
            at_once.set()
        else:
            answer.background = BackgroundTask(_set, at_once)  # runs when the answer has left
        if early:
            await self._callbacks_tried(task, life)
        if lost:
            return await self._lost(lost, stand_in, request)
        if late:
            await self.until(asyncio.Event(), late)
        if answer is None:
            if not await self.until(task.ended, None):
                return Cut()
            answer = stand_in.accepted(request, task)
        return _unreadable(answer.background) if unreadable else answer

    async def _lost(self, fault: str, stand_in: StandIn, request: Request) -> Response:
        if fault == "accept_then_bad_gateway":
            return self._fault_response(stand_in, "bad_gateway")
        if fault == "hang":
            gone = asyncio.Event()
            watch = asyncio.ensure_future(_watch(request, gone))
            try:
                await self.until(gone, self.dice.seconds(stand_in.name, "hang_seconds"))
            finally:
                watch.cancel()
        return Cut()

    async def _callbacks_tried(self, task: RemoteTask, life: asyncio.Task[None]) -> None:
        deadline = time.monotonic() + _EARLY_PATIENCE_SECONDS
        await asyncio.wait({life}, timeout=_EARLY_PATIENCE_SECONDS)
        for callback in list(task.callbacks):
            await self.until(callback.tried, max(0.0, deadline - time.monotonic()))

    def _fault_response(self, stand_in: StandIn, fault: str) -> Response:
        if fault == "bad_gateway":
            return HTMLResponse(_BAD_GATEWAY, 502, headers={"server": "nginx"})
        response = stand_in.fault_response(fault)
        if fault in ("busy", "unavailable"):
            response.headers["retry-after"] = f"{self.dice.seconds(stand_in.name, 'retry_after_seconds'):g}"
        return response

    # --- The life of a task -----------------------------------------------------------------------------------------

    async def _live(self, stand_in: StandIn, task: RemoteTask, *, stuck: bool, start: asyncio.Event) -> None:
        await self.until(start, _LONGEST_ANSWER_SECONDS)
        due = time.monotonic() + task.turnaround_seconds
        tell = self.announcer.voice(stand_in, task)
        fails = self.dice.strikes(stand_in.name, "fail", task.number)
        tell(stand_in.running[0])
        for state in stand_in.running[1:]:
            await asyncio.sleep(task.turnaround_seconds / (len(stand_in.running) + 1))
            task.enter(state)
            tell(state)
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
        tell(task.state)
        self.announcer.release(task)
        task.ended.set()

    async def work(self, stand_in: StandIn, task: RemoteTask) -> None:
        """Make the result; raises `Failing`. Code `unreachable`, `undecodable` or `too_large` where it is ours."""
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
        """Put *task*, which must not be running, into exactly *state*, with a result if that state has one."""
        task.failure, task.finished_at = None, None
        if state == stand_in.succeeded and not task.files:
            await self.work(stand_in, task)
        if state in (stand_in.succeeded, stand_in.failed):
            task.failure = Failing("", "") if state == stand_in.failed else None
            self.finish(stand_in, task)
            task.ended.set()
        else:
            task.enter(state)

    # --- Background -------------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None], task: RemoteTask | None = None) -> asyncio.Task[None]:
        running = asyncio.get_running_loop().create_task(work)
        self._background[running] = task
        running.add_done_callback(lambda done: self._background.pop(done, None))
        return running

    async def idle(self) -> None:
        """Return when nothing runs in the background: no task, no callback, no retry."""
        while self._background:
            await asyncio.wait(list(self._background))

    async def halt(self, task: RemoteTask | None = None) -> None:
        """End the background work of *task*, or all of it."""
        mine = [running for running, whose in self._background.items() if task is None or whose is task]
        for running in mine:
            running.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    async def until(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait for *event*; False if *seconds* passed or the sandbox was closed or reset first."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.closing.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return event.is_set()

    async def reset(self) -> None:
        """Forget every task and file, end every answer that waits; the faults are those of the beginning."""
        await self.halt()
        self.closing.set()
        self.closing = asyncio.Event()
        self.tasks.clear()
        self._by_id.clear()
        self.files.clear()
        self.calls.clear()
        self._fresh(self.first_faults)

    def open(self) -> None:
        """Be ready again after `aclose`."""
        if self.closing.is_set():
            self.closing = asyncio.Event()

    async def aclose(self) -> None:
        """End all background work and every answer that still waits. Idempotent."""
        self.closing.set()
        await self.halt()
        await self.outbound.aclose()
        self.studio.close()

    def _origin_of(self, request: Request) -> str:
        return self.origin or f"{request.url.scheme}://{request.url.netloc}"


_GATE = ("bad_gateway", "unavailable", "busy", "server_error", "bad_key", "no_credit")
_STATUS_GATE = ("status_bad_gateway", "status_unavailable", "status_busy", "status_server_error", "status_unreadable")
_LOST_ANSWERS = ("accept_then_reset", "accept_then_bad_gateway", "hang")

_BAD_GATEWAY = """<html>
<head><title>502 Bad Gateway</title></head>
<body><center><h1>502 Bad Gateway</h1></center><hr><center>nginx</center></body>
</html>
"""


def _unreadable(background: Any = None) -> Response:
    cut_short = json.dumps({"data": {"status": "ok"}})[:-4].encode()
    return Response(cut_short, 200, media_type="application/json", background=background)


async def _set(event: asyncio.Event) -> None:
    event.set()


async def _watch(request: Request, gone: asyncio.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
