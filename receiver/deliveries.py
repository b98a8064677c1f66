"""
Endpoints, deliveries and attempts: their statements, one transaction each.

A delivery is `pending` until it is `delivered` or `given_up` (or `dropped`, when its endpoint is gone). Its attempt and
what the attempt made of it are one commit, written after the answer came: a death in between delivers again, with the
same event id. Deliveries wait in lanes, one for each endpoint and one for each origin among notify URLs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from receiver.database import Database
from receiver.jobs import iso
from receiver.outbox import Happening, tell
from receiver.rows import from_us, moment, to_us, us


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """A `whsec_…`; `until` is set on one that was rotated out and still signs for a while."""

    secret: str = field(repr=False)
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A subscriber's URL. Empty `event_types` or `providers`: all of them."""

    id: str
    url: str
    created_at: datetime
    secrets: tuple[SigningSecret, ...] = field(repr=False)
    event_types: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    description: str = ""
    enabled: bool = True
    timeout_seconds: float = 15.0
    concurrency: int = 10
    rate: str | None = None
    failing_since: datetime | None = None
    disabled_reason: str | None = None

    def signing(self, now: datetime) -> list[str]:
        """The secrets that sign now, newest first."""
        return [one.secret for one in self.secrets if one.until is None or one.until > now]

    def to_json(self) -> dict[str, Any]:
        """The public shape; never a secret."""
        return {
            "id": self.id,
            "url": self.url,
            "event_types": list(self.event_types),
            "providers": list(self.providers),
            "description": self.description,
            "enabled": self.enabled,
            "timeout_seconds": self.timeout_seconds,
            "concurrency": self.concurrency,
            "rate": self.rate,
            "failing_since": iso(self.failing_since),
            "disabled_reason": self.disabled_reason,
            "created_at": iso(self.created_at),
        }


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint (or notify URL), taken for an attempt."""

    id: str
    event_id: str
    event_type: str
    job_id: str | None
    endpoint_id: str | None
    url: str | None
    lane: str
    tries: int
    due_at: datetime
    body: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt came to. `next_at` None: it is over, as `state` says."""

    delivery: Delivery
    state: str
    started_at: datetime
    seconds: float
    status: int | None = None
    answer: bytes | None = field(default=None, repr=False)
    error: str | None = None
    next_at: datetime | None = None
    fault: str | None = None


class Deliveries:
    """The sentences about endpoints, deliveries and attempts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due_lanes(self, now: datetime) -> list[str]:
        """Lanes with a delivery that is due, found by skipping from lane to lane in the index."""
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(
                "WITH RECURSIVE lanes(lane) AS ("
                " SELECT min(lane) FROM deliveries WHERE state = 'pending'"
                " UNION ALL SELECT (SELECT min(lane) FROM deliveries WHERE state = 'pending' AND lane > lanes.lane)"
                " FROM lanes WHERE lanes.lane IS NOT NULL)"
                " SELECT lane FROM lanes WHERE lane IS NOT NULL AND ("
                " EXISTS (SELECT 1 FROM deliveries d WHERE d.state = 'pending' AND d.lane = lanes.lane AND d.retry = 0"
                " AND d.next_at <= ?) OR"
                " EXISTS (SELECT 1 FROM deliveries d WHERE d.state = 'pending' AND d.lane = lanes.lane AND d.retry = 1"
                " AND d.next_at <= ?))",
                (us(now), us(now)),
            )
            return [row[0] for row in rows]

    async def claim(self, wanted: Mapping[str, int], now: datetime, *, owner: str, lease: timedelta) -> list[Delivery]:
        """
        Take up to `wanted[lane]` due deliveries of each lane.

        First tries come first, but where retries wait too they get a quarter of the places.
        """
        found: list[Any] = []
        async with self._database.write_raw() as db:
            for lane, places in wanted.items():
                retries = await db.execute_fetchall(_DUE, (lane, 1, us(now), us(now), places))
                firsts = await db.execute_fetchall(_DUE, (lane, 0, us(now), us(now), places))
                retries, firsts = list(retries), list(firsts)
                reserved = min(len(retries), max(places // 4, places - len(firsts), 1))
                found += [*firsts[: places - reserved], *retries[:reserved]]
            await db.executemany(
                "UPDATE deliveries SET lease_owner = ?, lease_until = ? WHERE id = ?",
                [(owner, us(now + lease), row[0]) for row in found],
            )
        return [_delivery(row) for row in found]

    async def renew(self, ids: Sequence[str], now: datetime, *, owner: str, lease: timedelta) -> None:
        async with self._database.write_raw() as db:
            await db.executemany(
                "UPDATE deliveries SET lease_until = ? WHERE id = ? AND lease_owner = ?",
                [(us(now + lease), one, owner) for one in ids],
            )

    async def hand_back(self, ids: Sequence[str], *, owner: str) -> None:
        async with self._database.write_raw() as db:
            await db.executemany(
                "UPDATE deliveries SET lease_owner = NULL, lease_until = NULL WHERE id = ? AND lease_owner = ?",
                [(one, owner) for one in ids],
            )

    async def next_at(self) -> datetime | None:
        """When the next delivery is due, whichever lane it is in."""
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(
                "WITH RECURSIVE lanes(lane) AS ("
                " SELECT min(lane) FROM deliveries WHERE state = 'pending'"
                " UNION ALL SELECT (SELECT min(lane) FROM deliveries WHERE state = 'pending' AND lane > lanes.lane)"
                " FROM lanes WHERE lanes.lane IS NOT NULL)"
                " SELECT min((SELECT min(next_at) FROM deliveries d WHERE d.state = 'pending' AND d.lane = lanes.lane"
                " AND d.retry = 0)), min((SELECT min(next_at) FROM deliveries d WHERE d.state = 'pending'"
                " AND d.lane = lanes.lane AND d.retry = 1)) FROM lanes WHERE lane IS NOT NULL"
            )
            row = rows.first()
        return from_us(min((value for value in row if value is not None), default=None)) if row else None

    async def book(self, outcomes: Sequence[Outcome]) -> None:
        """Write attempts and what they made of their deliveries, in one commit."""
        async with self._database.write_raw() as db:
            await db.executemany(
                "INSERT INTO attempts (delivery_id, started_at, seconds, status, answer, error)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [(o.delivery.id, us(o.started_at), o.seconds, o.status, o.answer, o.error) for o in outcomes],
            )
            await db.executemany(
                "UPDATE deliveries SET state = ?, tries = tries + 1, retry = 1, next_at = ?, finished_at = ?,"
                " last_status = ?, last_error = ?, fault = ?, lease_owner = NULL, lease_until = NULL"
                " WHERE id = ? AND state = 'pending'",
                [
                    (
                        o.state,
                        to_us(o.next_at),
                        None if o.next_at else us(o.started_at + timedelta(seconds=o.seconds)),
                        o.status,
                        o.error,
                        o.fault,
                        o.delivery.id,
                    )
                    for o in outcomes
                ],
            )

    # --- Endpoints --------------------------------------------------------------------------------------------------

    async def endpoints(self) -> list[Endpoint]:
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(f"SELECT {', '.join(_ENDPOINT)} FROM endpoints ORDER BY id")
            return [_endpoint(row) for row in rows.mappings()]

    async def endpoint(self, endpoint_id: str) -> Endpoint | None:
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(
                f"SELECT {', '.join(_ENDPOINT)} FROM endpoints WHERE id = ?", (endpoint_id,)
            )
            row = rows.mappings().first()
        return None if row is None else _endpoint(row)

    async def put_endpoint(self, endpoint: Endpoint) -> None:
        """Insert or replace what an operator may set."""
        values = _endpoint_values(endpoint)
        marks = ", ".join("?" for _ in values)
        updates = ", ".join(f"{name} = excluded.{name}" for name in values if name not in ("id", "created_at"))
        async with self._database.write_raw() as db:
            await db.execute(
                f"INSERT INTO endpoints ({', '.join(values)}) VALUES ({marks})"
                f" ON CONFLICT (id) DO UPDATE SET {updates}",
                tuple(values.values()),
            )

    async def endpoint_went(
        self, endpoint: Endpoint, *, well: bool, now: datetime, given_up: bool = False, disable: str | None = None
    ) -> None:
        """Note how an endpoint fares; tells `endpoint.failing` once a period and `endpoint.disabled`."""
        async with self._database.write_raw() as db:
            if well:
                await db.execute(
                    "UPDATE endpoints SET failing_since = NULL, told_failing_at = NULL WHERE id = ?", (endpoint.id,)
                )
                return
            await db.execute(
                "UPDATE endpoints SET failing_since = coalesce(failing_since, ?) WHERE id = ?", (us(now), endpoint.id)
            )
            happenings = []
            if given_up:
                cursor = await db.execute(
                    "UPDATE endpoints SET told_failing_at = ? WHERE id = ? AND told_failing_at IS NULL",
                    (us(now), endpoint.id),
                )
                if cursor.rowcount == 1:
                    happenings.append(Happening("endpoint.failing", endpoint.to_json()))
            if disable is not None:
                cursor = await db.execute(
                    "UPDATE endpoints SET enabled = 0, disabled_reason = ? WHERE id = ? AND enabled = 1",
                    (disable, endpoint.id),
                )
                if cursor.rowcount == 1:
                    shown = {**endpoint.to_json(), "enabled": False, "disabled_reason": disable}
                    happenings.append(Happening("endpoint.disabled", shown))
                await db.execute(
                    "UPDATE deliveries SET state = 'given_up', next_at = NULL, finished_at = ?, fault = 'theirs',"
                    " last_error = ?, lease_owner = NULL, lease_until = NULL"
                    " WHERE endpoint_id = ? AND state = 'pending'",
                    (us(now), f"endpoint disabled: {disable}", endpoint.id),
                )
            await tell(db, happenings, now)


_DUE = (
    "SELECT d.id, d.event_id, d.event_type, d.job_id, d.endpoint_id, d.url, d.lane, d.tries, d.next_at, e.body"
    " FROM deliveries d JOIN events e ON e.id = d.event_id"
    " WHERE d.state = 'pending' AND d.lane = ? AND d.retry = ? AND d.next_at <= ?"
    " AND (d.lease_until IS NULL OR d.lease_until < ?) ORDER BY d.next_at LIMIT ?"
)
_ENDPOINT = (
    "id",
    "url",
    "event_types",
    "providers",
    "description",
    "enabled",
    "secrets",
    "timeout_seconds",
    "concurrency",
    "rate",
    "created_at",
    "failing_since",
    "disabled_reason",
)


def _delivery(row: Any) -> Delivery:
    return Delivery(
        id=row[0],
        event_id=row[1],
        event_type=row[2],
        job_id=row[3],
        endpoint_id=row[4],
        url=row[5],
        lane=row[6],
        tries=row[7],
        due_at=moment(row[8]),
        body=row[9],
    )


def _endpoint(row: Any) -> Endpoint:
    return Endpoint(
        id=row["id"],
        url=row["url"],
        created_at=moment(row["created_at"]),
        secrets=tuple(SigningSecret(one["secret"], from_us(one["until"])) for one in json.loads(row["secrets"])),
        event_types=tuple(json.loads(row["event_types"])),
        providers=tuple(json.loads(row["providers"])),
        description=row["description"],
        enabled=bool(row["enabled"]),
        timeout_seconds=row["timeout_seconds"],
        concurrency=row["concurrency"],
        rate=row["rate"],
        failing_since=from_us(row["failing_since"]),
        disabled_reason=row["disabled_reason"],
    )


def _endpoint_values(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "event_types": json.dumps(endpoint.event_types),
        "providers": json.dumps(endpoint.providers),
        "description": endpoint.description,
        "enabled": int(endpoint.enabled),
        "secrets": json.dumps([{"secret": one.secret, "until": to_us(one.until)} for one in endpoint.secrets]),
        "timeout_seconds": endpoint.timeout_seconds,
        "concurrency": endpoint.concurrency,
        "rate": endpoint.rate,
        "created_at": us(endpoint.created_at),
        "failing_since": to_us(endpoint.failing_since),
        "disabled_reason": endpoint.disabled_reason,
    }
