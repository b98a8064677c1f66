"""Endpoints: subscribers' URLs, what they subscribe to, and how their failures are judged."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from receiver.domain.entity import entity, iso, json_of, shown, stored
from receiver.domain.events import EVENT_TYPES, NewEvent

DISABLE_AFTER = timedelta(days=5)
"""An endpoint that has failed for this long without a success is disabled."""
_MOST_SECRETS = 8


@entity
class SigningSecret:
    """A `whsec_…`; `until` is set on one that was rotated out and still signs for a while."""

    secret: str = stored(repr=False)
    until: datetime | None = stored(default=None)


@entity
class Endpoint:
    """A subscriber's URL. Empty `event_types` or `providers`: all of them. `secrets`: newest first."""

    id: str = shown(identifier=True)
    url: str = shown()
    created_at: datetime = shown()
    secrets: tuple[SigningSecret, ...] = stored(repr=False)
    event_types: tuple[str, ...] = shown("Empty: all.", default=(), schema={"items": {"enum": list(EVENT_TYPES)}})
    providers: tuple[str, ...] = shown("Empty: all, and events about none.", default=())
    description: str = shown(default="")
    enabled: bool = shown(default=True)
    timeout_seconds: float = shown("For a whole attempt.", default=15.0)
    concurrency: int = shown("Attempts at once.", default=10)
    rate: str | None = shown("`count/seconds`", default=None)
    failing_since: datetime | None = shown(default=None)
    failure_reported_at: datetime | None = stored(default=None)
    disabled_reason: str | None = shown(default=None)

    def signing(self, now: datetime) -> list[str]:
        """The secrets that sign now, newest first."""
        return [each.secret for each in self.secrets if each.until is None or each.until > now]

    def rotated(self, secret: str, now: datetime, *, overlap: timedelta) -> Endpoint:
        """Return the endpoint with *secret* as the newest; earlier secrets sign for *overlap* at most."""
        until = now + overlap
        before = (replace(each, until=min(each.until or until, until)) for each in self.secrets)
        kept = [each for each in before if each.until and each.until > now]
        return replace(self, secrets=(SigningSecret(secret), *kept)[:_MOST_SECRETS])

    def switched(self, *, on: bool, reason: str | None = None) -> Endpoint:
        """Return the endpoint enabled, with no failures on record; or disabled for *reason*."""
        if on:
            return replace(self, enabled=True, failing_since=None, failure_reported_at=None, disabled_reason=None)
        return replace(self, enabled=False, disabled_reason=reason)

    def to_json(self) -> dict[str, Any]:
        """The public shape; never a secret."""
        return _endpoint_to_json(self)


_endpoint_to_json = json_of(Endpoint)


def judged(
    before: Endpoint, now: datetime, *, well: bool, given_up: bool, gone: bool
) -> tuple[Endpoint, tuple[NewEvent, ...]]:
    """
    Return an enabled endpoint as it is after some attempts, and the events to write.

    *well*: a delivery arrived; *given_up*: a delivery had its last try; *gone*: the endpoint answered 410.
    `endpoint.failing` is emitted once between the first failure and the next success, when a delivery is given up;
    `endpoint.disabled` when the endpoint is *gone* or has failed for days.
    """
    new_events: list[NewEvent] = []
    after = replace(before, failing_since=before.failing_since or now)
    if given_up and after.failure_reported_at is None:
        after = replace(after, failure_reported_at=now)
        new_events.append(NewEvent("endpoint.failing", after.to_json()))
    assert after.failing_since is not None
    if gone or now - after.failing_since > DISABLE_AFTER:
        reason = "it answered 410 Gone" if gone else f"it has failed since {iso(after.failing_since)}"
        after = after.switched(on=False, reason=reason)
        new_events.append(NewEvent("endpoint.disabled", after.to_json()))
    if well:
        after = replace(after, failing_since=None, failure_reported_at=None)
    return after, tuple(new_events)
