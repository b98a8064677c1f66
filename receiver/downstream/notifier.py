"""
Delivers events to downstream systems: signed, at least once.

Deliveries are claimed, or handed over by the transaction that wrote them, leased to this process (store/handover.py).
Each lane (an endpoint, or the origin of notify URLs) has slots and queues of its own, so one that hangs delays only
itself; each slot has its own connection, because in a pool every post looks through all of them. Within a lane, first
tries and later tries queue apart: later ones get one start in four, and never all slots. A slot is free again when its
attempt is booked, so a crash repeats at most as many deliveries as there are slots, each with its event's id. Headers
and secrets are those of Standard Webhooks; redirects are not followed; only 2xx counts as delivered.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from receiver.domain.deliveries import Agenda, Delivery, Outcome
from receiver.domain.endpoints import Endpoint
from receiver.domain.events import is_notify_lane
from receiver.downstream.lanes import Lane
from receiver.net.arriving import LONGEST_RETRY_AFTER
from receiver.net.client import Outbound
from receiver.net.guard import OutboundError, OutboundRefused
from receiver.net.transport import KEEPALIVE_SECONDS
from receiver.runtime.group_commit import GroupCommit
from receiver.runtime.logs import InfoLines
from receiver.runtime.loops import Loop, TaskPool
from receiver.runtime.metrics import Metrics
from receiver.runtime.token_bucket import Bucket
from receiver.runtime.wakes import Wakes
from receiver.store.deliveries import Deliveries
from receiver.store.endpoints import Endpoints
from receiver.store.handover import Handover
from receiver.store.leases import LEASE
from submitter.provider_settings import parse_rate
from submitter.retry_after import retry_after_seconds
from submitter.signatures import signed_headers

log = structlog.get_logger("receiver.notifier")
_DELIVERED = InfoLines(log, "delivery_successful", "type", "job", "endpoint", "status", on_terminals=True)

_NOTIFY_CONCURRENCY = 10
_NOTIFY_TIMEOUT_SECONDS = 15.0
_ANSWER_BYTES = 1024
_MINDS_SECONDS = 1.0
_MOST_IDLE_LANES = 200
_WALK_SECONDS = 80e-6
"""The rest after a walk through the lanes, for each lane: a step of the walk takes 4 µs."""
_NOTHING_SECONDS = 3600.0
_MOST_HANDED_OVER = 4096
"""The most handed-over deliveries that wait here, in equal shares for all lanes."""
_CLAIMED_AT_ONCE = 1024
"""About the most deliveries that one transaction claims: each holds the writer for about 15 µs."""


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """
    The rules for deliveries: *secrets* sign those to notify URLs, *schedule* is the delay in seconds before each try.

    At most *most_notify_calls* calls to notify URLs are under way at once. While *most_calls* calls of any kind are, an
    endpoint has one slot, so thousands of endpoints neither use up the sockets nor hold each other up.
    """

    secrets: tuple[str, ...]
    schedule: tuple[float, ...]
    most_notify_calls: int = 256
    """Limited because callers choose these URLs, and each call holds a socket."""

    most_calls: int = 1024


class Notifier:
    """
    Delivers due events, by *policy*. *connect* makes the guarded client of a slot; deliveries
    are handed over by *handover* as long as the loop runs.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        endpoints: Endpoints,
        connect: Callable[[], Outbound],
        metrics: Metrics,
        policy: DeliveryPolicy,
        *,
        handover: Handover,
        wakes: Wakes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._calls = self._notify_calls = 0
        self._held_up = False
        """Whether a lane waits for a call to a notify URL to end."""
        self._crowded = False
        """Whether a lane was kept to one slot since so many calls were under way."""
        self._deliveries = deliveries
        self._endpoints = endpoints
        self._connect = connect
        self._metrics = metrics
        self._owner = handover.owner
        self._handover = handover
        self._policy = policy
        self._wakes = wakes
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._known: Mapping[str, Endpoint] = {}
        self._revision: str | None = None
        self._known_at = -_MINDS_SECONDS
        self._changes = self._minded = 0
        """Changes of endpoints made here, and how many of them were applied: until all are, nothing starts."""
        self._walk_at = -_MINDS_SECONDS
        self._has_walked = False
        """Whether the lanes were walked through since this was last woken."""
        self._upcoming_at: datetime | None = None
        """The earliest time of a delivery that was not yet due at the last walk."""
        self._waiting: dict[tuple[str, bool], None] = {}
        """Lanes (and whether their later tries) with more due deliveries than they hold; the next to claim first."""
        self._stopped: set[str] = set()
        """Lanes that hold deliveries and may not start them: their rate or the calls allowed are used up."""
        self._booking: GroupCommit[Outcome] = GroupCommit(self._book, batch=256, limit=None, patience_seconds=None)
        self.loop = Loop("notifier", self.step, woken=wakes.notifier)
        self.renewals = Loop("delivery-leases", self._renew, idle_seconds=LEASE.total_seconds() / 4)

    async def step(self) -> float:
        """Claim due deliveries into the lanes and start as many as there are slots."""
        now = self._clock()
        self._handover.open(self._room_for_new, self._take_over)
        more = await self._deliveries.fans_out() and await self._deliveries.fan_out(
            now, first_delay_seconds=self._policy.schedule[0]
        )
        rest = self._walk_at - time.monotonic() if self._minded == self._changes else 0.0
        self._has_walked = False
        changed = await self._walk(now) if rest <= 0 else set[str]()
        changed |= await self._take_in(now)
        self._has_walked = rest <= 0
        waits = [self._fill(self._lanes[name]) for name in changed | self._stopped if name in self._lanes]
        if more:
            waits.append(0.0)
        if rest > 0:
            waits.append(rest)
        if self._upcoming_at is not None:
            waits.append((self._upcoming_at - now).total_seconds())
        if any(self._room(place) for place in self._waiting):
            waits.append(0.0)
        return max(min(waits, default=_NOTHING_SECONDS), 0.001)

    def endpoints_changed(self) -> None:
        """Apply a change of an endpoint made here at once. Changes by other processes are applied within a second."""
        self._changes += 1
        self.loop.wake()

    async def shutdown(self, *, grace_seconds: float) -> None:
        """Let attempts in flight end; release everything else."""
        self._handover.close()
        waiting = [delivery for lane in self._lanes.values() for delivery in lane.waiting()]
        for lane in self._lanes.values():
            lane.drop()
        if waiting:
            await self._deliveries.hand_back(waiting, owner=self._owner)
        await asyncio.gather(*(lane.pool.shutdown(grace_seconds=grace_seconds) for lane in self._lanes.values()))
        await self._booking.drain()
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))

    # --- Lanes ------------------------------------------------------------------------------------------------------

    async def _walk(self, now: datetime) -> set[str]:
        """
        Find due deliveries in all lanes, and apply changes of endpoints. Returns the lanes that it changed.

        The more lanes there are, the longer the rest until the next walk: walks never take more than a small share of
        the time. Between them, deliveries that are known to wait are claimed, and new ones are handed over.
        """
        agenda = await self._deliveries.agenda(now)
        self._walk_at = time.monotonic() + _WALK_SECONDS * len(agenda.lanes)
        self._upcoming_at = agenda.next_after(now)
        changed = await self._mind_endpoints(agenda)
        for name in agenda.lanes:
            self._lane(name)
        due = dict.fromkeys(agenda.due(now))
        self._waiting = {place: None for place in self._waiting if place in due} | due
        await self._forget(agenda)
        return changed

    def _lane(self, name: str) -> Lane:
        if name not in self._lanes:
            pool = TaskPool(_NOTIFY_CONCURRENCY, on_idle=lambda: self._freed(name))
            self._lanes[name] = Lane(name, pool, Bucket([]), None)
            self._adjust(self._lanes[name], self._known.get(name))
        return self._lanes[name]

    async def _mind_endpoints(self, agenda: Agenda) -> set[str]:
        """Bring the lanes' settings up to date, at most a second old. Returns the lanes that were changed."""
        now = time.monotonic()
        unknown = any(name not in self._known and not is_notify_lane(name) for name in agenda.lanes)
        changes = self._changes
        if not unknown and changes == self._minded and now - self._known_at < _MINDS_SECONDS:
            return set()
        self._known_at = now
        found = await self._endpoints.changed(self._revision)
        self._minded = changes
        if found is None:
            return set()
        self._revision, endpoints = found
        self._known = {endpoint.id: endpoint for endpoint in endpoints}
        return {name for name, lane in self._lanes.items() if self._adjust(lane, self._known.get(name))}

    def _adjust(self, lane: Lane, endpoint: Endpoint | None) -> bool:
        """Give *lane* the settings of *endpoint*. Returns whether they differ from before."""
        if endpoint == lane.endpoint:
            return False
        if lane.endpoint is not None and (endpoint is None or not endpoint.enabled):
            lane.drop()
        rate = endpoint.rate if endpoint else None
        if rate != (lane.endpoint.rate if lane.endpoint else None):
            lane.bucket = Bucket([parse_rate(rate)] if rate else [])
        lane.pool.size = endpoint.concurrency if endpoint else _NOTIFY_CONCURRENCY
        lane.endpoint = endpoint
        return True

    async def _forget(self, agenda: Agenda) -> None:
        """Close connections that are no longer needed, and drop lanes that have nothing to do."""
        quiet_since = time.monotonic() - KEEPALIVE_SECONDS
        for lane in self._lanes.values():
            if lane.clients and lane.idle and lane.used_at < quiet_since:
                await lane.close()
        if len(self._lanes) > _MOST_IDLE_LANES:
            for name in [name for name, lane in self._lanes.items() if lane.idle and name not in agenda.lanes]:
                await self._lanes.pop(name).close()

    def _room(self, place: tuple[str, bool]) -> int:
        name, retry = place
        return self._lanes[name].room(retry=retry) if name in self._lanes else 0

    async def _take_in(self, now: datetime) -> set[str]:
        """Claim due deliveries where lanes have room, of some lanes at a time. Returns the lanes that got some."""
        places, total = dict[tuple[str, bool], int](), 0
        for place in self._waiting:
            if total >= _CLAIMED_AT_ONCE:
                break
            if room := self._room(place):
                places[place] = room
                total += room
        if not places:
            return set()
        held = {delivery for name, _ in places for delivery in self._lanes[name].held()}
        got = Counter[tuple[str, bool]]()
        for delivery in await self._deliveries.claim(places, now, owner=self._owner, lease=LEASE):
            got[delivery.lane, delivery.retry] += 1
            lane = self._lanes[delivery.lane]
            if delivery.id not in held:
                (lane.later if delivery.retry else lane.first).append(delivery)
        for place, room in places.items():
            self._waiting.pop(place, None)
            if got[place] == room:  # there may be more: it queues up behind the others
                self._waiting[place] = None
        return {name for name, _ in got}

    def _room_for_new(self, name: str) -> int:
        """Return how many deliveries *name* may be handed: none while older ones may wait in the database."""
        lane = self._lanes.get(name)
        if lane is None or (name, False) in self._waiting or not self._has_walked or self._wakes.notifier.is_set():
            return 0
        return max(4 * lane.pool.size, _MOST_HANDED_OVER // len(self._lanes)) - len(lane.first)

    def _take_over(self, deliveries: Sequence[Delivery]) -> None:
        lanes = {delivery.lane: self._lane(delivery.lane) for delivery in deliveries}
        for delivery in deliveries:
            lanes[delivery.lane].first.append(delivery)
        if min(map(self._fill, lanes.values())) < _NOTHING_SECONDS:
            self.loop.wake()  # which goes on when a rate allows it

    def _fill(self, lane: Lane) -> float:
        """Start the deliveries that may start; return in how many seconds more may."""
        self._stopped.discard(lane.name)
        if self._minded != self._changes:
            self._stopped.add(lane.name)
            return 0.0
        while True:
            if lane.endpoint is None and self._notify_calls >= self._policy.most_notify_calls:
                self._stopped.add(lane.name)
                self._held_up = True
                return _NOTHING_SECONDS
            if self._calls >= self._policy.most_calls and lane.pool.busy:
                self._stopped.add(lane.name)
                self._crowded = True
                return _NOTHING_SECONDS
            if lane.bucket.available() == 0:
                if not (lane.first or lane.later):
                    return _NOTHING_SECONDS
                self._stopped.add(lane.name)
                return max(lane.bucket.seconds_for(1), 0.001)
            delivery = lane.next()
            if delivery is None:
                return _NOTHING_SECONDS
            lane.bucket.take()
            lane.starts += 1
            lane.used_at = time.monotonic()
            lane.later_busy += delivery.retry
            self._calls += 1
            self._notify_calls += delivery.endpoint_id is None
            lane.pool.start(self._work(lane, delivery), name=delivery.id, job=delivery.job_id)

    def _freed(self, name: str) -> None:
        lane = self._lanes.get(name)
        if lane is not None:
            self._fill(lane)
            more = any((name, retry) in self._waiting and lane.room(retry=retry) for retry in (False, True))
            emptier = self._crowded and self._calls <= self._policy.most_calls // 2
            if more or self._held_up or emptier:
                self._held_up = False
                self._crowded = self._crowded and not emptier
                self.loop.wake()

    # --- Attempts ---------------------------------------------------------------------------------------------------

    async def _work(self, lane: Lane, delivery: Delivery) -> None:
        client: Outbound | None = None
        started_at = self._clock()
        try:
            try:
                client = lane.clients.pop() if lane.clients else self._connect()
                outcome = await self.attempt(client, delivery, lane.endpoint)
            except Exception as exc:  # noqa: BLE001 (after any error, the next try is by the schedule)
                outcome = self._failure(delivery, started_at, exc)
            await self._booking.add(outcome)
        except asyncio.CancelledError:
            await asyncio.shield(self._deliveries.hand_back([delivery.id], owner=self._owner))
            raise
        finally:
            self._calls -= 1
            self._notify_calls -= delivery.endpoint_id is None
            lane.later_busy -= delivery.retry
            if client is not None:
                await self._keep(lane, client)
        if outcome.gone and not delivery.example:
            lane.drop()
        if outcome.next_at is not None:
            self.loop.wake()  # which learns of that time from the agenda
        self._metrics.deliveries.labels(outcome.state if outcome.next_at is None else "again").inc()
        if outcome.state == "delivered":
            _DELIVERED.write([(delivery.event_type, delivery.job_id, delivery.endpoint_id, str(outcome.status))])
        else:
            log.warning(
                "delivery_unsuccessful",
                delivery=delivery.id,
                job=delivery.job_id,
                type=delivery.event_type,
                endpoint=delivery.endpoint_id,
                status=outcome.status,
                error=outcome.error,
                given_up=outcome.next_at is None,
            )

    async def _keep(self, lane: Lane, client: Outbound) -> None:
        """Keep the connection of a slot for its next delivery, or close it where many lanes have idle ones."""
        share = max(self._policy.most_calls // max(len(self._lanes), 1), 1)
        if lane.first or lane.later or len(lane.clients) < share:
            lane.clients.append(client)
        else:
            await client.aclose()

    async def attempt(self, outbound: Outbound, delivery: Delivery, endpoint: Endpoint | None) -> Outcome:
        """Sign and post once. Never raises for anything that the other side does."""
        started_at, clock = self._clock(), time.perf_counter()
        self._metrics.delivery_wait.observe(max((started_at - delivery.due_at).total_seconds(), 0))
        url = endpoint.url if endpoint else delivery.url
        if url is None:
            return Outcome(delivery, "dropped", started_at, 0.0, error="the endpoint was removed")
        if endpoint is not None and not endpoint.enabled and not delivery.example:
            return Outcome(delivery, "given_up", started_at, 0.0, error="the endpoint is disabled", fault="theirs")
        body = delivery.body.encode()
        secrets = endpoint.signing(started_at) if endpoint else self._policy.secrets
        headers = {
            "content-type": "application/json",
            **signed_headers(secrets, delivery.event_id, started_at, body),
        }
        timeout = endpoint.timeout_seconds if endpoint else _NOTIFY_TIMEOUT_SECONDS
        status: int | None = None
        answer: bytes | None = None
        wish: float | None = None
        try:
            came = await outbound.post(
                url, content=body, headers=headers, timeout_seconds=timeout, max_answer_bytes=_ANSWER_BYTES
            )
        except OutboundError as exc:
            error, fault = str(exc), "ours" if isinstance(exc, OutboundRefused) else "theirs"
        else:
            status, answer = came.status, came.body
            if 200 <= status < 300:
                seconds = time.perf_counter() - clock
                return Outcome(delivery, "delivered", started_at, seconds, status=status, answer=answer)
            error, fault = f"answered {status}", "theirs"
            wish = retry_after_seconds(came.headers, longest=LONGEST_RETRY_AFTER)
        seconds = time.perf_counter() - clock
        gone = status == 410
        next_at = None if gone else self._next_at(delivery, wish)
        state = "given_up" if next_at is None else "pending"
        return Outcome(delivery, state, started_at, seconds, status, answer, error, next_at, fault, gone)

    def _failure(self, delivery: Delivery, started_at: datetime, exc: Exception) -> Outcome:
        """Return the outcome of an attempt that failed in our own code; unbooked, every lease would repeat it."""
        log.error(
            "delivery_attempt_failed",
            delivery=delivery.id,
            job=delivery.job_id,
            error=type(exc).__name__,
            detail=str(exc)[:300],
        )
        next_at = self._next_at(delivery, None)
        state = "given_up" if next_at is None else "pending"
        error = f"internal error: {type(exc).__name__}"
        return Outcome(delivery, state, started_at, 0.0, error=error, next_at=next_at, fault="ours")

    def _next_at(self, delivery: Delivery, wish: float | None) -> datetime | None:
        """Return the next try's time: by the schedule, plus jitter, and not before *wish*. None: that was the last."""
        made = delivery.tries + 1
        if made >= len(self._policy.schedule) or delivery.example:
            return None
        pause = self._policy.schedule[made] * random.uniform(1.0, 1.1)
        return self._clock() + timedelta(seconds=max(pause, wish or 0.0))

    async def _book(self, outcomes: Sequence[Outcome]) -> None:
        if await self._deliveries.book(outcomes, self._clock()):
            self._wakes.events_written()

    async def _renew(self) -> float:
        held = [delivery for lane in self._lanes.values() for delivery in lane.held()]
        if held:
            await self._deliveries.renew(held, self._clock(), owner=self._owner, lease=LEASE)
        return LEASE.total_seconds() / 4
