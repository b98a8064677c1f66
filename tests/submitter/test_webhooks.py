"""Webhooks in applications: verified, typed, and refused in each framework if the signature is invalid."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Annotated, Any

import django
import django.conf
import fastapi
import flask
import httpx
import pytest
import standardwebhooks
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import path
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import submitter.contrib.django
import submitter.contrib.fastapi
import submitter.contrib.flask
from receiver.domain.endpoints import Endpoint
from receiver.domain.events import EVENT_TYPES
from receiver.web.examples import example_data
from submitter import CallbackRefused, EndpointEvent, Event, Job, JobEvent, ProviderEvent, UnknownEvent
from submitter import testing as samples
from submitter.signatures import new_secret, signed_headers
from submitter.testing import sample_event
from submitter.webhooks import unwrap

SECRET, OTHER = new_secret(), new_secret()
Delivery = tuple[dict[str, str], bytes]


# --- unwrap ---------------------------------------------------------------------------------------------------------


def test_the_types_known_here_are_those_that_a_receiver_sends() -> None:
    assert samples.EVENT_TYPES == EVENT_TYPES


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_every_type_is_signed_verified_and_typed_by_family(kind: str) -> None:
    headers, body = sample_event(kind, SECRET)
    standardwebhooks.Webhook(SECRET).verify(body, headers)
    event = unwrap(headers, body, [OTHER, SECRET])
    family = {"job": JobEvent, "endpoint": EndpointEvent, "provider": ProviderEvent}[kind.partition(".")[0]]
    assert type(event) is family
    assert (event.type, event.id, event.body) == (kind, headers["webhook-id"], body.decode())
    assert (event.job is not None) == (family is JobEvent)


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_samples_have_the_fields_of_a_receivers_own_examples(kind: str) -> None:
    now = datetime.now(UTC)
    endpoint = Endpoint(id="ep_1", url="https://example.com", created_at=now, secrets=())
    theirs = example_data(kind, endpoint, now)
    sample = json.loads(sample_event(kind, SECRET)[1])["data"]
    assert set(theirs) <= set(sample)
    for here, there in zip(sample.get("images", ()), theirs.get("images", ()), strict=False):
        assert set(there) <= set(here)


def test_what_a_newer_receiver_adds_is_read_and_kept() -> None:
    headers, body = sample_event("job.succeeded", SECRET, data={"colour": "red"})
    event = unwrap(headers, body, SECRET)
    assert isinstance(event.data, Job)
    assert event.data["colour"] == "red"
    assert event.data.to_json()["colour"] == "red"
    with pytest.raises(KeyError):
        event.data["weight"]
    for kind, family in [("job.praised", JobEvent), ("weather.changed", UnknownEvent)]:
        document = json.loads(body) | {"type": kind}
        text = json.dumps(document).encode()
        event = unwrap(signed_headers([SECRET], "evt_1", datetime.now(UTC), text), text, SECRET)
        assert (type(event), event.type) == (family, kind)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"\xff", b'{"type": 1}', b"[" * 100_000, b'{"type": "job.failed"}']
)
def test_a_signed_body_that_is_no_event_is_refused_and_nothing_else(body: bytes) -> None:
    with pytest.raises(CallbackRefused, match="not a receiver's event") as refused:
        unwrap(signed_headers([SECRET], "evt_1", datetime.now(UTC), body), body, SECRET)
    assert refused.value.reason == "bad_body"


def test_headers_may_be_pairs_of_bytes_and_an_old_delivery_is_refused() -> None:
    headers, body = sample_event("job.failed", SECRET)
    pairs = [(name.upper().encode(), value.encode()) for name, value in headers.items()]
    assert unwrap(iter(pairs), body, SECRET).id == headers["webhook-id"]
    with pytest.raises(CallbackRefused, match="replay"):
        unwrap(headers, body, SECRET, now=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(ValueError, match="whsec_"):
        unwrap(headers, body, "secret")
    with pytest.raises(ValueError, match=r"there is no event 'job\.lost'"):
        sample_event("job.lost", SECRET)


# --- Frameworks -----------------------------------------------------------------------------------------------------


def fastapi_app(handled: list[Event]) -> Any:
    app = fastapi.FastAPI()

    @app.post("/hooks", status_code=204, response_model=None)
    async def hook(event: Annotated[Event, fastapi.Depends(submitter.contrib.fastapi.event(SECRET))]) -> None:
        handled.append(event)

    return app


def starlette_app(handled: list[Event]) -> Any:
    verified = submitter.contrib.fastapi.event(SECRET)

    async def hook(request: Request) -> Response:
        handled.append(await verified(request))
        return Response(status_code=204)

    return Starlette(routes=[Route("/hooks", hook, methods=["POST"])])


def flask_app(handled: list[Event]) -> Any:
    app = flask.Flask("shop")

    @app.post("/hooks")
    def hook() -> tuple[str, int]:
        handled.append(submitter.contrib.flask.event(SECRET))
        return "", 204

    return app


@pytest.fixture(scope="module")
def shop() -> Iterator[ModuleType]:
    """A Django project with its CSRF check on; its views append to `handled`."""
    module = ModuleType("tests_django_shop")
    module.handled = []  # type: ignore[attr-defined]

    @submitter.contrib.django.receives(SECRET)
    def hook(request: Any, event: Event) -> HttpResponse:
        module.handled.append(event)
        return HttpResponse(status=204)

    @submitter.contrib.django.receives([OTHER, SECRET])
    async def hook_async(request: Any, event: Event) -> HttpResponse:
        module.handled.append(event)
        return HttpResponse(status=204)

    module.urlpatterns = [path("hooks", hook), path("async-hooks", hook_async)]  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    if not django.conf.settings.configured:
        django.conf.settings.configure(
            ALLOWED_HOSTS=["shop.test"],
            MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
            ROOT_URLCONF=module.__name__,
            SECRET_KEY="a key for tests",
        )
        django.setup(set_prefix=False)
    yield module
    del sys.modules[module.__name__]


def wsgi(app: Any) -> Callable[..., httpx.Response]:
    def post(url: str, delivery: Delivery, method: str = "POST") -> httpx.Response:
        with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://shop.test") as client:
            return client.request(method, url, headers=delivery[0], content=delivery[1])

    return post


async def asgi(app: Any, url: str, delivery: Delivery) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.test") as client:
        return await client.post(url, headers=delivery[0], content=delivery[1])


def forged() -> list[Delivery]:
    headers, body = sample_event("job.failed", SECRET)
    unsigned = {name: value for name, value in headers.items() if not name.startswith("webhook")}
    return [(headers, body + b" "), (unsigned, body), sample_event("job.failed", OTHER)]


@pytest.mark.parametrize("framework", [fastapi_app, starlette_app])
async def test_asgi_frameworks_handle_what_holds_and_refuse_the_rest(framework: Callable[..., Any]) -> None:
    handled: list[Event] = []
    app = framework(handled)
    assert (await asgi(app, "/hooks", sample_event("job.failed", SECRET))).status_code == 204
    for delivery in forged():
        answer = await asgi(app, "/hooks", delivery)
        assert (answer.status_code, SECRET in answer.text) == (401, False)
    assert [event.type for event in handled] == ["job.failed"]


def test_flask_handles_what_holds_and_refuses_the_rest() -> None:
    handled: list[Event] = []
    post = wsgi(flask_app(handled))
    assert post("/hooks", sample_event("job.failed", SECRET)).status_code == 204
    assert [post("/hooks", delivery).status_code for delivery in forged()] == [401, 401, 401]
    assert [event.type for event in handled] == ["job.failed"]


async def test_django_handles_what_holds_and_refuses_the_rest(shop: ModuleType) -> None:
    handled: list[Event] = shop.handled
    handled.clear()
    post = wsgi(WSGIHandler())
    assert post("/hooks", sample_event("job.failed", SECRET)).status_code == 204
    assert [post("/hooks", delivery).status_code for delivery in forged()] == [401, 401, 401]
    assert post("/hooks", sample_event("job.failed", SECRET), method="GET").status_code == 405
    assert (await asgi(ASGIHandler(), "/async-hooks", sample_event("job.queued", SECRET))).status_code == 204
    assert (await asgi(ASGIHandler(), "/async-hooks", ({}, b"{}"))).status_code == 401
    assert [event.type for event in handled] == ["job.failed", "job.queued"]


def test_a_malformed_secret_is_an_error_where_the_handler_is_made() -> None:
    for make in (submitter.contrib.fastapi.event, submitter.contrib.django.receives):
        with pytest.raises(ValueError, match="whsec_"):
            make("not a secret")
