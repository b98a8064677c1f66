"""
Telling downstream systems: signed, at least once.

Each lane (an endpoint, or the origin of notify URLs) has slots of its own, so one that hangs delays only itself. A
slot is free again when the attempt is booked, so a death repeats at most as many deliveries as there are slots, each
with its event's id. Headers and secrets are those of Standard Webhooks; redirects are not followed; only 2xx is
delivered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from receiver.deliveries import Deliveries, Delivery, Endpoint, Outcome
from receiver.groups import GroupCommit
from receiver.guard import OutboundError, OutboundRefused
from receiver.leases import LEASE
from receiver.loops import Crew, Loop
from receiver.metrics import Metrics
from receiver.outbound import Outbound, retry_after_seconds
from receiver.pacing import Bucket
from receiver.settings import parse_rate
from submitter.signatures import sign

log = structlog.get_logger("receiver.notifier")

_NOTIFY_CONCURRENCY = 10
_NOTIFY_TIMEOUT_SECONDS = 15.0
_ANSWER_BYTES = 1024
_DISABLE_AFTER = timedelta(days=5)
_LONGEST_RETRY_AFTER = 24 * 3600.0


@dataclass(slots=True)
class _Lane:
    """Deliveries of one receiver that this process holds, and its slots."""

    crew: Crew
    bucket: Bucket
    endpoint: Endpoint | None
    queue: deque[Delivery] = field(default_factory=deque)


class Notifier:
    """Delivers what is due. *secrets* sign deliveries to notify URLs; *schedule* is in seconds."""

    def __init__(
        self,
        deliveries: Deliveries,
        outbound: Outbound,
        metrics: Metrics,
        *,
        owner: str,
        secrets: Sequence[str],
        schedule: Sequence[float],
        told: Callable[[], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._deliveries = deliveries
        self._outbound = outbound
        self._metrics = metrics
        self._owner = owner
        self._secrets = tuple(secrets)
        self._schedule = tuple(schedule)
        self._told = told
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._booking: GroupCommit[Outcome] = GroupCommit(deliveries.book, batch=256)
        self.loop = Loop("notifier", self.step)
        self.renewals = Loop("delivery-leases", self._renew, idle_seconds=LEASE.total_seconds() / 4)

    async def step(self) -> float:
        """Take what is due into the lanes and start as much as there are slots."""
        now = self._clock()
        due = await self._deliveries.due_lanes(now)
        if due:
            self._endpoints = {one.id: one for one in await self._deliveries.endpoints()}
        wanted = {}
        for name in due:
            lane = self._lane(name)
            room = 2 * lane.crew.size - len(lane.queue) - lane.crew.busy
            if room > 0 and len(lane.queue) < lane.crew.size:
                wanted[name] = room
        claimed = await self._deliveries.claim(wanted, now, owner=self._owner, lease=LEASE) if wanted else []
        for delivery in claimed:
            self._lanes[delivery.lane].queue.append(delivery)
        waits = [self._fill(lane) for lane in self._lanes.values()]
        self._forget_idle_lanes(set(due))
        if claimed:
            return 0.0
        next_at = await self._deliveries.next_at() if not due else None
        if next_at is not None:
            waits.append((next_at - now).total_seconds())
        return max(min(waits, default=3600.0), 0.02)

    async def dismiss(self, *, grace_seconds: float) -> None:
        """Let attempts in flight end, hand everything else back."""
        held = [delivery.id for lane in self._lanes.values() for delivery in lane.queue]
        for lane in self._lanes.values():
            lane.queue.clear()
        if held:
            await self._deliveries.hand_back(held, owner=self._owner)
        await asyncio.gather(*(lane.crew.dismiss(grace_seconds=grace_seconds) for lane in self._lanes.values()))
        await self._booking.drain()

    def _lane(self, name: str) -> _Lane:
        endpoint = self._endpoints.get(name)
        lane = self._lanes.get(name)
        if lane is None or (endpoint is not None and lane.endpoint != endpoint):
            size = endpoint.concurrency if endpoint else _NOTIFY_CONCURRENCY
            rate = parse_rate(endpoint.rate) if endpoint and endpoint.rate else None
            if lane is None:
                crew = Crew(size, on_free=lambda: self._freed(name))
                lane = self._lanes[name] = _Lane(crew, Bucket([rate] if rate else []), endpoint)
            else:
                if rate is None or endpoint is None or lane.endpoint is None or lane.endpoint.rate != endpoint.rate:
                    lane.bucket = Bucket([rate] if rate else [])
                lane.crew.size, lane.endpoint = size, endpoint
        return lane

    def _fill(self, lane: _Lane) -> float:
        while lane.queue and lane.crew.free:
            if lane.bucket.available() == 0:
                return lane.bucket.seconds_to_next()
            lane.bucket.take()
            delivery = lane.queue.popleft()
            lane.crew.start(self._work(delivery, lane.endpoint), name=f"deliver {delivery.id}")
        return 3600.0

    def _freed(self, name: str) -> None:
        lane = self._lanes.get(name)
        if lane is not None:
            self._fill(lane)
            if len(lane.queue) < lane.crew.size:
                self.loop.wake()

    def _forget_idle_lanes(self, due: set[str]) -> None:
        if len(self._lanes) > 1000:
            for name in [
                n for n, lane in self._lanes.items() if n not in due and not lane.queue and not lane.crew.busy
            ]:
                del self._lanes[name]

    async def _work(self, delivery: Delivery, endpoint: Endpoint | None) -> None:
        try:
            outcome = await self.attempt(delivery, endpoint)
            await self._booking.add(outcome)
        except asyncio.CancelledError:
            await asyncio.shield(self._deliveries.hand_back([delivery.id], owner=self._owner))
            raise
        self._metrics.deliveries.labels(outcome.state if outcome.next_at is None else "again").inc()
        if outcome.state != "delivered":
            log.warning(
                "delivery_unsuccessful",
                delivery=delivery.id,
                event=delivery.event_type,
                endpoint=delivery.endpoint_id,
                status=outcome.status,
                error=outcome.error,
                given_up=outcome.next_at is None,
            )
        if endpoint is not None:
            await self._note(endpoint, outcome)

    async def attempt(self, delivery: Delivery, endpoint: Endpoint | None) -> Outcome:
        """Sign and post once. Never raises for what the other side does."""
        started_at, clock = self._clock(), time.perf_counter()
        self._metrics.delivery_wait.observe(max((started_at - delivery.due_at).total_seconds(), 0))
        url = endpoint.url if endpoint else delivery.url
        if url is None or (endpoint is None and delivery.endpoint_id is not None):
            return Outcome(delivery, "dropped", started_at, 0.0, error="the endpoint is gone", fault="ours")
        if endpoint is not None and not endpoint.enabled:
            return Outcome(delivery, "given_up", started_at, 0.0, error="the endpoint is disabled", fault="theirs")
        body = delivery.body.encode("utf-8")
        secrets = endpoint.signing(started_at) if endpoint else self._secrets
        headers = {
            "content-type": "application/json",
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(int(started_at.timestamp())),
            "webhook-signature": " ".join(sign(secret, delivery.event_id, started_at, body) for secret in secrets),
        }
        timeout = endpoint.timeout_seconds if endpoint else _NOTIFY_TIMEOUT_SECONDS
        status: int | None = None
        answer: bytes | None = None
        error: str | None = None
        fault: str | None = None
        wish: float | None = None
        try:
            came = await self._outbound.post(
                url, content=body, headers=headers, timeout_seconds=timeout, max_answer_bytes=_ANSWER_BYTES
            )
        except OutboundError as exc:
            error, fault = str(exc), "ours" if isinstance(exc, OutboundRefused) else "theirs"
        else:
            status, answer = came.status, came.body
            if not 200 <= status < 300:
                error, fault = f"answered {status}", "theirs"
                wish = retry_after_seconds(came.headers)
        seconds = time.perf_counter() - clock
        if error is None:
            return Outcome(delivery, "delivered", started_at, seconds, status=status, answer=answer)
        next_at = None if status == 410 else self._next_at(delivery, wish)
        state = "given_up" if next_at is None else "pending"
        return Outcome(delivery, state, started_at, seconds, status, answer, error, next_at, fault)

    def _next_at(self, delivery: Delivery, wish: float | None) -> datetime | None:
        made = delivery.tries + 1
        if made >= len(self._schedule):
            return None
        pause = self._schedule[made] * random.uniform(1.0, 1.1)
        if wish is not None:
            pause = max(pause, min(wish, _LONGEST_RETRY_AFTER))
        return self._clock() + timedelta(seconds=pause)

    async def _note(self, endpoint: Endpoint, outcome: Outcome) -> None:
        now = self._clock()
        if outcome.state == "delivered":
            if endpoint.failing_since is not None:
                await self._deliveries.endpoint_went(endpoint, well=True, now=now)
            return
        disable = None
        if outcome.status == 410:
            disable = "it answered 410 Gone"
        elif endpoint.failing_since is not None and now - endpoint.failing_since > _DISABLE_AFTER:
            disable = f"it has failed since {endpoint.failing_since:%Y-%m-%d %H:%M} UTC"
        given_up = outcome.state == "given_up"
        if endpoint.failing_since is None or given_up or disable:
            await self._deliveries.endpoint_went(endpoint, well=False, now=now, given_up=given_up, disable=disable)
            self._told()

    async def _renew(self) -> float:
        held = [delivery.id for lane in self._lanes.values() for delivery in lane.queue]
        held += [name.removeprefix("deliver ") for lane in self._lanes.values() for name in lane.crew.names()]
        if held:
            await self._deliveries.renew(held, self._clock(), owner=self._owner, lease=LEASE)
        return LEASE.total_seconds() / 4
