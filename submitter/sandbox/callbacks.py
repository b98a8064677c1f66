"""
Sending of callbacks: the selection, repetition and order of them, and the result of each try.

A task's callbacks are sent in the order of its states, each after the first attempt of the one before; retries don't
hold up the next one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from submitter.sandbox.background import Background
from submitter.sandbox.faults import Dice
from submitter.sandbox.outbound import Outbound
from submitter.sandbox.settings import Settings
from submitter.sandbox.stand_in import CallbackRules, CallingStandIn, StandIn
from submitter.sandbox.tasks import Attempt, RemoteTask, SentCallback
from submitter.sandbox.twist import Twist


class Announcer:
    """Sends a task's callbacks, as far as the faults let it."""

    def __init__(self, settings: Settings, dice: Dice, outbound: Outbound, background: Background) -> None:
        self._settings = settings
        self._dice = dice
        self._outbound = outbound
        self._background = background

    def announcements(self, stand_in: StandIn, task: RemoteTask) -> Callable[[str], None]:
        """Return a function to call with each state that *task* enters; holds callbacks back that will be reordered."""
        if not isinstance(stand_in, CallingStandIn):
            return lambda state: None
        several = len(stand_in.announced.difference((stand_in.failed,))) > 1
        if task.callback_url and several and self._dice.strikes(stand_in.name, "reorder", task.number):
            task.held = []
        return lambda state: self._log_events(stand_in, task, state)

    def release(self, task: RemoteTask) -> None:
        """Send the callbacks that were held back, last state first, after the task's last state."""
        held, task.held = task.held, None
        for send in reversed(held or []):
            send()

    def forge(self, stand_in: StandIn, task: RemoteTask) -> None:
        """Send a forged success, if that fault strikes."""
        if not isinstance(stand_in, CallingStandIn) or not task.callback_url:
            return
        if not self._dice.strikes(stand_in.name, "forge", task.number):
            return
        body = stand_in.forged_body(task, f"{task.origin}/forged/{secrets.token_urlsafe(12)}.jpg")
        callback = SentCallback(stand_in.succeeded, "forged")
        task.callbacks.append(callback)
        rules = CallbackRules(stand_in.rules.timeout_seconds)
        headers = stand_in.forged_headers(body)
        self._background.spawn(self._deliver(task, callback, rules, body, lambda: headers, after=None), task)

    async def once(self, stand_in: CallingStandIn, task: RemoteTask, url: str, twist: Twist) -> list[Attempt]:
        """Send a callback about the task's current state to *url*, modified by *twist*, without retries."""
        if "lose" in twist.faults:
            task.callbacks.append(SentCallback(task.state, "lost"))
            return []
        body = twist.applied(stand_in.callback_body(task, task.state))
        forged = "forge" in twist.faults
        headers = stand_in.forged_headers(body) if forged else stand_in.callback_headers(body)
        sent = [(SentCallback(task.state, "forged" if forged else "true"), headers)]
        if "duplicate" in twist.faults:
            again = stand_in.forged_headers(body) if forged else stand_in.callback_headers(body)
            sent.append((SentCallback(task.state, "duplicate"), again))
        if "replay" in twist.faults:
            sent.append((SentCallback(task.state, "replay"), headers))
        task.callbacks += [callback for callback, _ in sent]
        return [await self._try(callback, stand_in.rules, url, body, its) for callback, its in sent]

    def _log_events(self, stand_in: CallingStandIn, task: RemoteTask, state: str) -> None:
        if not task.callback_url or state not in stand_in.announced:
            return
        roll = self._dice.strikes
        if roll(stand_in.name, "lose", task.number):
            lost = SentCallback(state, "lost")
            lost.tried.set()
            task.callbacks.append(lost)
            return
        copies: list[Literal["duplicate", "replay"]] = []
        if roll(stand_in.name, "duplicate", task.number):
            copies.append("duplicate")
        if roll(stand_in.name, "replay", task.number):
            copies.append("replay")
        body = stand_in.callback_body(task, state)

        def send() -> None:
            first = self._queue(stand_in, task, SentCallback(state, "true"), body)
            for kind in copies:
                self._queue(stand_in, task, SentCallback(state, kind), body, replayed=first)

        if task.held is None:
            send()
        else:
            task.held.append(send)

    def _queue(
        self,
        stand_in: CallingStandIn,
        task: RemoteTask,
        callback: SentCallback,
        body: bytes,
        replayed: SentCallback | None = None,
    ) -> SentCallback:
        def headers() -> dict[str, str]:
            return dict(replayed.headers) if replayed and callback.kind == "replay" else stand_in.callback_headers(body)

        previous, task.last_callback = task.last_callback, callback
        task.callbacks.append(callback)
        self._background.spawn(self._deliver(task, callback, stand_in.rules, body, headers, after=previous), task)
        return callback

    async def _deliver(
        self,
        task: RemoteTask,
        callback: SentCallback,
        rules: CallbackRules,
        body: bytes,
        headers: Callable[[], dict[str, str]],
        *,
        after: SentCallback | None,
    ) -> None:
        assert task.callback_url is not None
        try:
            await asyncio.sleep(self._dice.seconds(task.provider, "delay_seconds"))
            if after is not None:
                await after.tried.wait()
            for delay in (0.0, *rules.retry_delays_seconds):
                await asyncio.sleep(delay * self._settings.retry_scale)
                attempt = await self._try(callback, rules, task.callback_url, body, headers())
                if attempt.status in rules.content_with:
                    return
        finally:
            callback.tried.set()

    async def _try(
        self, callback: SentCallback, rules: CallbackRules, url: str, body: bytes, headers: dict[str, str]
    ) -> Attempt:
        callback.headers = headers
        patience = rules.timeout_seconds * self._settings.callback_timeout_scale
        at = datetime.now(UTC)
        status, error = await self._outbound.post(url, headers=headers, body=body, timeout_seconds=patience)
        attempt = Attempt(at, status, error)
        callback.attempts.append(attempt)
        callback.tried.set()
        return attempt
