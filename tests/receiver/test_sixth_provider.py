"""
A provider that the product does not know: written, set up and registered here, and nowhere else.

Larch signs its callbacks in a manner of its own and does not say what a task costs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import httpx
import pytest
from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.app import Receiver
from receiver.cli.settings_listing import in_force, known
from receiver.settings import SettingsInvalid, given, load
from submitter import parsing
from submitter.errors import CallbackRefused, TaskNotFound
from submitter.images import json_request, plain_request
from submitter.parsing import Unreadable
from submitter.provider import Provider, ProviderOptions, Rhythm, json_answer, json_body, refusal, unreadable
from submitter.provider_settings import PricedSettings, Rate, Secrets, SettingsWarning
from submitter.providers import PROVIDERS
from submitter.sandbox import test_picture as picture_bytes
from submitter.signatures import new_secret, verify
from submitter.vocabulary import Callback, Cost, Exchange, Failure, Image, Report, State, Task, Trust
from tests.support.serving import serving
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

SIGNING_KEY = "larch-signing-key"
PICTURE = picture_bytes(64, 48)
STATES = {"done": State.SUCCEEDED, "broken": State.FAILED}


# --- The provider: what would be submitter/providers/larch.py -------------------------------------------------------


class LarchOptions(ProviderOptions):
    growth: Literal[2, 4] | None = Field(default=None, description="How many times larger the result is.")


class LarchSettings(PricedSettings):
    signing_key: Secrets = Field((), description="Comma-separated for rotation.")

    def constructor_arguments(self) -> dict[str, Any]:
        keys = [key.get_secret_value() for key in self.signing_key]
        return {**super().constructor_arguments(), "signing_keys": keys}


class Larch(Provider):
    name = "larch"
    title = "Larch"
    default_base_url = "https://api.larch.example"
    callbacks = True
    pollable = True
    Options = LarchOptions
    Settings = LarchSettings
    rates: ClassVar[tuple[Rate, ...]] = (Rate(10, 1),)
    rhythm = Rhythm(first=30, interval=30)

    def __init__(
        self, *, api_key: str, base_url: str | None = None, signing_keys: Sequence[str] = (), price: Cost | None = None
    ) -> None:
        super().__init__(api_key=api_key, base_url=base_url)
        self.keys = tuple(key.encode() for key in signing_keys)
        self.trust = Trust.SIGNED_BODY if self.keys else Trust.CAPABILITY_TOKEN
        self.price = price

    def warnings(self) -> tuple[SettingsWarning, ...]:
        if self.keys:
            return ()
        return (SettingsWarning("larch_callbacks_unverified", "its callbacks are hints", "set LARCH_SIGNING_KEY"),)

    def submit(self, task: Task, callback_url: str | None) -> Exchange[Report]:
        body = {**parsing.merged(task.options, task.passthrough), "notify": callback_url}
        url = f"{self.base_url}/tasks"
        answer = yield json_request("POST", url, self._headers(), body, picture=task.picture, at=("picture",))
        return self.submitted(answer)

    def submitted(self, response: httpx.Response) -> Report:
        return self._report_of(response)

    def poll(self, remote_id: str) -> Exchange[Report]:
        answer = yield plain_request("GET", f"{self.base_url}/tasks/{remote_id}", self._headers())
        return self.polled(answer)

    def polled(self, response: httpx.Response) -> Report:
        if response.status_code == 404:
            raise TaskNotFound("Larch does not know the task", code="not_found")
        return self._report_of(response)

    def verify(self, callback: Callback, now: datetime) -> None:
        if not self.keys:
            return
        sent_at, given = callback.header("x-larch-sent-at") or b"", callback.header("x-larch-signature") or b""
        good = [hmac.new(key, sent_at + b"." + callback.body, hashlib.sha256).hexdigest().encode() for key in self.keys]
        if not any(hmac.compare_digest(given, digest) for digest in good):
            raise CallbackRefused("signature does not match; is LARCH_SIGNING_KEY right?", reason="bad_signature")
        if not sent_at.isdigit() or abs(now.timestamp() - int(sent_at[:15])) > 300:
            raise CallbackRefused("it was sent at another time", reason="stale")

    def read(self, callback: Callback) -> Report | None:
        try:
            return self._report(json_body(callback))
        except Unreadable as exc:
            raise exc.as_callback() from exc

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Larch {self.api_key}"}

    def _report_of(self, response: httpx.Response) -> Report:
        if not response.is_success:
            raise refusal(response, code=None, message=None, permanent=True, own_shape=False)
        body = json_answer(response)
        try:
            return self._report(body)
        except Unreadable as exc:
            raise unreadable(exc, response, body) from exc

    def _report(self, body: Any) -> Report:
        task = parsing.mapping(body, "the body")
        remote_id, status = parsing.identifier(task.get("id"), "id"), parsing.word(task.get("status"), "status")
        state = STATES.get(status, State.RUNNING)
        images = (Image(url=task.get("result")),) if state is State.SUCCEEDED else ()
        error = Failure("broken", "Larch could not grow it", permanent=True) if state is State.FAILED else None
        return Report(remote_id, state, images=images, error=error, cost=self.price, remote_status=status)


# --- Its API --------------------------------------------------------------------------------------------------------


@dataclass
class LarchApi:
    """Accepts tasks and does nothing about them; `tasks` holds the bodies that were sent."""

    tasks: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @property
    def app(self) -> Starlette:
        async def accept(request: Request) -> Response:
            self.keys.append(request.headers["authorization"])
            self.tasks.append(await request.json())
            return JSONResponse({"id": f"larch-{len(self.tasks)}", "status": "planted"})

        async def picture(request: Request) -> Response:
            return Response(PICTURE, media_type="image/png")

        return Starlette(routes=[Route("/tasks", accept, methods=["POST"]), Route("/result.png", picture)])


def signed(body: bytes, *, key: str = SIGNING_KEY, at: datetime | None = None) -> dict[str, str]:
    sent_at = str(int((at or datetime.now(UTC)).timestamp()))
    digest = hmac.new(key.encode(), f"{sent_at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"x-larch-sent-at": sent_at, "x-larch-signature": digest}


# --- The receiver ---------------------------------------------------------------------------------------------------

NOTIFY_SECRET = new_secret()


@asynccontextmanager
async def receiver_with_larch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a receiver that is set up from the environment, as an operator does it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROVIDERS, Larch.name, Larch)
    environment = {
        "LARCH_API_KEY": "larch-key",
        "LARCH_BASE_URL": api,
        "LARCH_SIGNING_KEY": f"{SIGNING_KEY},an-older-key",
        "LARCH_PRICE": "3 credits",
        "RECEIVER_DATA_DIR": str(tmp_path / "data"),
        "RECEIVER_PUBLIC_URL": "https://hooks.example.com",
        "RECEIVER_API_TOKENS": "a-token-of-the-tests",
        "RECEIVER_NOTIFY_SECRETS": NOTIFY_SECRET,
        "RECEIVER_ALLOW_NETWORKS": "127.0.0.0/8",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    receiver = Receiver(*load())
    async with (
        receiver.app.router.lifespan_context(receiver.app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(receiver.app),
            base_url="https://hooks.example.com",
            headers={"authorization": "Bearer a-token-of-the-tests"},
        ) as client,
    ):
        yield client


async def test_a_provider_of_this_module_goes_from_submit_to_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, subscriber = LarchApi(), Subscriber()
    async with (
        serving(api.app) as origin,
        subscriber.serve() as application,
        receiver_with_larch(tmp_path, monkeypatch, origin) as client,
    ):
        described = {"provider": "larch", "options": {"growth": 4}, "notify_url": f"{application}/hook"}
        made = await client.post(
            "/v1/jobs", data={"job": json.dumps(described)}, files={"image": ("leaf.png", PICTURE)}
        )
        assert made.status_code == 202, made.text
        job_url = made.headers["location"]

        async def job() -> dict[str, Any]:
            found: dict[str, Any] = (await client.get(job_url)).json()
            return found

        async def is_in(state: str) -> bool:
            return bool((await job())["state"] == state)

        await eventually(lambda: is_in("running"))
        assert api.keys == ["Larch larch-key"]
        assert api.tasks[0]["growth"] == 4

        callback_url = api.tasks[0]["notify"]
        body = json.dumps({"id": "larch-1", "status": "done", "result": f"{origin}/result.png"}).encode()
        stale = datetime.now(UTC) - timedelta(hours=1)
        for headers in ({}, signed(body, key="another"), signed(body, at=stale), signed(body + b" ")):
            assert (await client.post(callback_url, content=body, headers=headers)).status_code == 401
        assert (await client.post(callback_url, content=body, headers=signed(body))).status_code == 200

        await eventually(lambda: is_in("succeeded"))

        async def kept() -> bool:
            return bool((await job())["images"][0]["kept"])

        await eventually(kept)
        done = await job()
        assert (done["remote_id"], done["settled_by"]) == ("larch-1", "callback")
        assert done["cost"] == {"amount": "3", "unit": "credits"}
        assert (await client.get(f"{job_url}/images/0")).content == PICTURE
        evidence = (await client.get(f"{job_url}/evidence")).json()["items"]
        assert [(item["source"], item["verdict"]) for item in evidence if item["verdict"] != "refused"] == [
            ("response", "believed"),
            ("callback", "believed"),
        ]

        await eventually(lambda: bool(subscriber.seen))
        (delivery,) = subscriber.seen
        verify(delivery.headers, delivery.body, NOTIFY_SECRET)
        event = json.loads(delivery.body)
        assert (event["type"], event["data"]["id"], event["data"]["provider"]) == ("job.succeeded", done["id"], "larch")


async def test_what_is_shown_of_providers_shows_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver_with_larch(tmp_path, monkeypatch, "http://127.0.0.1:1") as client:
        shown = {item["name"]: item for item in (await client.get("/v1/providers")).json()["items"]}
        described = (await client.get("/openapi.json")).text
        metrics = (await client.get("http://127.0.0.1/metrics")).text
    assert "growth" in shown["larch"]["options"]["properties"]
    assert '"larch"' in described
    assert 'provider="larch"' in metrics


def test_its_settings_are_listed_and_a_wrong_one_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROVIDERS, Larch.name, Larch)
    monkeypatch.setenv("LARCH_PRICE", "0.10 USD")
    assert "LARCH_SIGNING_KEY" in {setting.name for setting in known()}
    shown = {setting.name: (setting.value, setting.origin) for setting in in_force(*load(), given())}
    assert shown["LARCH_PRICE"] == ("0.10 USD", "environment")
    monkeypatch.setenv("LARCH_PRICE", "cheap")
    with pytest.raises(SettingsInvalid, match=r"LARCH_PRICE: write it as `0\.10 USD` or `5 credits`"):
        load()
