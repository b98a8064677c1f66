"""
Subscriptions of the endpoints: kept in memory, and looked up by the type and the provider of an event.

Every change of an endpoint gives the subscriptions a new revision, in the transaction of the change. No revision is
ever used twice, so subscriptions read at a revision are valid wherever that revision is found again: a transaction
reads one small row instead of all endpoints. Writing deliveries takes the lock `subscriptions` shared, changing an
endpoint takes it exclusively.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from receiver.domain.events import ENDPOINT_EVENTS, Subscription
from receiver.domain.ids import new_id
from receiver.store.statements import Fetch, Run, Work, first

_KEPT = 4
_kept: dict[str, Subscribers] = {}
"""Subscribers by revision, the newest last. Revisions are unique, so databases can share this."""


class Subscribers:
    """The enabled endpoints as of *revision*; empty before the first endpoint was ever made."""

    def __init__(self, revision: str, subscriptions: Sequence[Subscription]) -> None:
        self.revision = revision
        self.subscriptions = tuple(subscriptions)
        self._interested: dict[tuple[str, str | None], tuple[str, ...]] = {}

    def interested(self, event_type: str, provider: str | None, subject_id: object = None) -> Sequence[str]:
        """Return the ids of endpoints that want an event, in order; an endpoint's own failure goes to the others."""
        kind = (event_type, provider)
        found = self._interested.get(kind)
        if found is None:
            wants = (each.endpoint_id for each in self.subscriptions if each.wants(event_type, provider, None))
            found = self._interested[kind] = tuple(wants)
        if event_type in ENDPOINT_EVENTS:
            return [endpoint_id for endpoint_id in found if endpoint_id != subject_id]
        return found


def subscriptions_revision() -> Work[str]:
    """The revision of the subscriptions; empty before the first endpoint was ever made."""
    row = yield from first(_REVISION)
    return "" if row is None else str(row[0])


def subscribers() -> Work[Subscribers]:
    """The subscriptions of all enabled endpoints."""
    revision = yield from subscriptions_revision()
    known = _kept.get(revision)
    if known is None:
        rows = yield Fetch(_SUBSCRIPTIONS)
        made = [Subscription(row[0], frozenset(json.loads(row[1])), frozenset(json.loads(row[2]))) for row in rows]
        known = Subscribers(revision, made)
        if revision:
            for old in list(_kept)[: 1 - _KEPT]:
                _kept.pop(old, None)
            _kept[revision] = known
    return known


def subscriptions_changed() -> Work[None]:
    """Give the subscriptions a new revision, after a change of an endpoint and in its transaction."""
    yield Run(_CHANGED, (new_id("rev"),))


_REVISION = "SELECT revision FROM revisions WHERE name = 'subscriptions'"
_SUBSCRIPTIONS = "SELECT id, event_types, providers FROM endpoints WHERE enabled = 1 ORDER BY id"
_CHANGED = (
    "INSERT INTO revisions (name, revision) VALUES ('subscriptions', ?)"
    " ON CONFLICT (name) DO UPDATE SET revision = excluded.revision"
)
