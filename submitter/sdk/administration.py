"""The calls about providers, endpoints and deliveries. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypedDict
from urllib.parse import quote

import httpx

from submitter.errors import NotFound
from submitter.sdk.link import Link, joined, moment
from submitter.sdk.steps import Steps
from submitter.sdk.values import Delivery, DeliveryState, Endpoint, Health, Pause, ProviderInfo, Replayed


class EndpointSettings(TypedDict, total=False):
    """Settings of an endpoint other than its URL; those that are not given keep their default, or their value."""

    event_types: Sequence[str]
    """Empty: all events."""
    providers: Sequence[str]
    """Empty: events about any provider, or about none."""
    description: str
    enabled: bool
    timeout_seconds: float
    """For a whole attempt."""
    concurrency: int
    """Attempts at once."""
    rate: str | None
    """Limit on attempts, as `count/seconds`."""


class EndpointChanges(EndpointSettings, total=False):
    url: str


class DeliveryFilters(TypedDict, total=False):
    """Filters for deliveries."""

    state: str | Sequence[str]
    undelivered: bool
    fault: str
    endpoint: str
    job: str
    event: str
    type: str | Sequence[str]


def health(link: Link, *, timeout: float | None) -> Steps[Health]:
    """Return the answer of `/readyz`: not ready is an answer too, so 503 is not retried."""
    deadline, tries = link.deadline(timeout), 0
    while True:
        tries += 1
        try:
            answer: httpx.Response = yield link.request("GET", "/readyz", patience=deadline - link.clock())
        except httpx.RequestError as exc:
            yield from link.pause(deadline, tries, cause=exc)
            continue
        return link.read(Health, answer) if answer.status_code in (200, 503) else _strange(link, answer)


def providers(link: Link, *, timeout: float | None) -> Steps[list[ProviderInfo]]:
    items, _ = link.read_page(ProviderInfo, (yield from link.call("GET", "/v1/providers", timeout=timeout)))
    return items


def pause(link: Link, provider: str, *, reason: str | None, timeout: float | None) -> Steps[Pause | None]:
    body = {} if reason is None else {"reason": reason}
    answer = yield from link.call("POST", _path("providers", provider, "pause"), timeout=timeout, json=body)
    return link.read(ProviderInfo, answer).paused


def resume(link: Link, provider: str, *, timeout: float | None) -> Steps[bool]:
    """Resume a provider; False if it was not paused."""
    answer = yield from link.call("POST", _path("providers", provider, "resume"), timeout=timeout, json={})
    return bool(link.read(ProviderInfo, answer)["resumed"])


# --- Endpoints ------------------------------------------------------------------------------------------------------


def list_endpoints(link: Link, *, timeout: float | None) -> Steps[None]:
    return (yield from link.pages(Endpoint, "/v1/endpoints", {}, timeout=timeout))


def create_endpoint(
    link: Link, url: str, *, secret: str | None, settings: EndpointSettings, timeout: float | None
) -> Steps[Endpoint]:
    body: dict[str, Any] = {"url": url, **settings}
    if secret is not None:
        body["secret"] = secret
    answer = yield from link.call("POST", "/v1/endpoints", timeout=timeout, repeatable=False, json=_plain(body))
    return link.read(Endpoint, answer)


def endpoint(link: Link, endpoint: Endpoint | str, *, timeout: float | None) -> Steps[Endpoint]:
    return link.read(Endpoint, (yield from link.call("GET", _endpoint(endpoint), timeout=timeout)))


def update_endpoint(
    link: Link, endpoint: Endpoint | str, *, changes: EndpointChanges, timeout: float | None
) -> Steps[Endpoint]:
    answer = yield from link.call("PATCH", _endpoint(endpoint), timeout=timeout, json=_plain(dict(changes)))
    return link.read(Endpoint, answer)


def delete_endpoint(link: Link, endpoint: Endpoint | str, *, timeout: float | None) -> Steps[None]:
    """Delete an endpoint. A try whose answer was lost may have deleted it: then the next one does not find it."""
    tries = 0

    def make(patience: float) -> httpx.Request:
        nonlocal tries
        tries += 1
        return link.request("DELETE", _endpoint(endpoint), patience=patience)

    try:
        yield from link.retried(make, timeout=timeout)
    except NotFound:
        if tries == 1:
            raise


def test_endpoint(link: Link, endpoint: Endpoint | str, *, event_type: str, timeout: float | None) -> Steps[Delivery]:
    answer = yield from link.call(
        "POST", _endpoint(endpoint, "test"), timeout=timeout, repeatable=False, json={"event_type": event_type}
    )
    return link.read(Delivery, answer)


def rotate_secret(
    link: Link,
    endpoint: Endpoint | str,
    *,
    overlap_seconds: float | None,
    secret: str | None,
    timeout: float | None,
) -> Steps[Endpoint]:
    body = {"overlap_seconds": overlap_seconds, "secret": secret}
    answer = yield from link.call(
        "POST",
        _endpoint(endpoint, "rotate-secret"),
        timeout=timeout,
        repeatable=False,
        json={name: value for name, value in body.items() if value is not None},
    )
    return link.read(Endpoint, answer)


# --- Deliveries -----------------------------------------------------------------------------------------------------


def list_deliveries(link: Link, *, filters: DeliveryFilters, timeout: float | None) -> Steps[None]:
    params: dict[str, Any] = {
        name: value if isinstance(value, str) else joined(value) for name, value in _texts(filters)
    }
    return (yield from link.pages(Delivery, "/v1/deliveries", params, timeout=timeout))


def delivery(link: Link, delivery: Delivery | str, *, timeout: float | None) -> Steps[Delivery]:
    return link.read(Delivery, (yield from link.call("GET", _delivery(delivery), timeout=timeout)))


def replay(link: Link, delivery: Delivery | str, *, timeout: float | None) -> Steps[Delivery]:
    answer = yield from link.call("POST", _delivery(delivery, "replay"), timeout=timeout, repeatable=False)
    return link.read(Delivery, answer)


def replay_many(
    link: Link,
    *,
    endpoint: Endpoint | str | None,
    since: datetime | str | None,
    state: DeliveryState | None,
    dry_run: bool,
    timeout: float | None,
) -> Steps[Replayed]:
    endpoint_id = endpoint.id if isinstance(endpoint, Endpoint) else endpoint
    body = {"endpoint_id": endpoint_id, "since": moment(since), "state": state}
    answer = yield from link.call(
        "POST",
        "/v1/deliveries/replay",
        timeout=timeout,
        repeatable=dry_run,
        json={"dry_run": dry_run, **{name: value for name, value in body.items() if value is not None}},
    )
    return link.read(Replayed, answer)


# --- Parts ----------------------------------------------------------------------------------------------------------


def _path(*parts: str) -> str:
    return "/".join(["/v1", *(quote(part, safe="") for part in parts)])


def _endpoint(endpoint: Endpoint | str, *more: str) -> str:
    return _path("endpoints", endpoint if isinstance(endpoint, str) else endpoint.id, *more)


def _delivery(delivery: Delivery | str, *more: str) -> str:
    return _path("deliveries", delivery if isinstance(delivery, str) else delivery.id, *more)


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple | set | frozenset) else value for name, value in body.items()}


def _texts(filters: DeliveryFilters) -> list[tuple[str, Any]]:
    return [(name, str(value).lower() if isinstance(value, bool) else value) for name, value in filters.items()]


def _strange(link: Link, answer: httpx.Response) -> Health:
    link.checked(answer)
    raise link.stranger()
