"""
`Sandbox`: the five stand-ins, the result links and the control calls as one Starlette app.

A sixth provider is one file next to this one and one line in `STAND_INS`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import Receive, Scope, Send

from submitter.sandbox.apixo import Apixo
from submitter.sandbox.faults import Faults
from submitter.sandbox.freepik import Freepik
from submitter.sandbox.novita import Novita
from submitter.sandbox.picture import test_picture
from submitter.sandbox.pixelcut import Pixelcut
from submitter.sandbox.serving import serving
from submitter.sandbox.settings import Settings
from submitter.sandbox.stand_in import CallingStandIn, StandIn, is_url
from submitter.sandbox.tasks import Order, RemoteTask
from submitter.sandbox.twist import TRUE, Twist
from submitter.sandbox.upscaling import Target
from submitter.sandbox.upscayl import Upscayl
from submitter.sandbox.work import Bench

STAND_INS: tuple[type[StandIn], ...] = (Freepik, Apixo, Novita, Upscayl, Pixelcut)

CALLBACK_STATES: dict[str, tuple[str, ...]] = {
    stand_in.name: stand_in.announced_words() if issubclass(stand_in, CallingStandIn) else () for stand_in in STAND_INS
}
"""The states that each provider calls back about, as people write them."""


def announced_state(provider: str, word: str) -> str:
    """The state that a person means by *word*, as *provider* writes it in callbacks. Raises ValueError."""
    stand_in = next((found for found in STAND_INS if found.name == provider), None)
    if stand_in is None:
        raise ValueError(f"provider must be one of {', '.join(CALLBACK_STATES)}")
    if not issubclass(stand_in, CallingStandIn):
        raise ValueError(f"{provider} sends no callbacks")
    return stand_in.announced_state(word)


API_KEYS: dict[str, str] = {stand_in.name: f"sandbox-{stand_in.name}-key" for stand_in in STAND_INS}
FREEPIK_WEBHOOK_SECRET = "sandbox-freepik-secret-0123456789"


class Sandbox:
    """
    Local stand-ins for the five upscaling APIs.

    Without *origin*, result links name the address that a submit call was sent to. *turnaround_seconds* is the range
    from which each task's duration is drawn; *link_seconds* shortens the documented life of result links by provider
    name; *retry_scale* and *callback_timeout_scale* scale the documented callback retries and patience. With a *seed*,
    every random decision is the same in every run.
    """

    def __init__(
        self,
        origin: str | None = None,
        *,
        api_keys: Mapping[str, str] | None = None,
        freepik_webhook_secret: str = FREEPIK_WEBHOOK_SECRET,
        freepik_webhook_secret_encoding: str = "utf8",
        freepik_api_key_header: str = "x-freepik-api-key",
        upscayl_older_words: bool = False,
        turnaround_seconds: tuple[float, float] = (0.5, 1.5),
        link_seconds: Mapping[str, float] | None = None,
        retry_scale: float = 1.0,
        callback_timeout_scale: float = 1.0,
        seed: int | None = None,
        faults: Faults | None = None,
    ) -> None:
        settings = Settings(
            api_keys={**API_KEYS, **(api_keys or {})},
            freepik_webhook_secret=freepik_webhook_secret,
            freepik_webhook_secret_encoding=freepik_webhook_secret_encoding,
            freepik_api_key_header=freepik_api_key_header,
            upscayl_older_words=upscayl_older_words,
            turnaround_seconds=turnaround_seconds,
            link_seconds=dict(link_seconds or {}),
            retry_scale=retry_scale,
            callback_timeout_scale=callback_timeout_scale,
            seed=secrets.randbits(32) if seed is None else seed,
        )
        self.bench = Bench(settings, faults or Faults(), origin.rstrip("/") if origin else None)
        parts = (settings, self.bench.tasks, self.bench.studio, self.bench.outbound)
        self.stand_ins: dict[str, StandIn] = {stand_in.name: stand_in(*parts) for stand_in in STAND_INS}
        self.app = self._app()

    @property
    def tasks(self) -> list[RemoteTask]:
        """All tasks, in the order of acceptance; those made by `/_sandbox/trigger` are marked `triggered`."""
        return self.bench.tasks.all

    def accepted(self, provider: str | None = None) -> list[RemoteTask]:
        """Return the tasks from submit calls, of one provider or of all."""
        return [task for task in self.tasks if not task.triggered and provider in (None, task.provider)]

    def calls(self, provider: str, kind: str = "submit") -> int:
        """Count the `submit` or `status` calls received, refused and broken ones included."""
        return self.bench.calls[provider, kind]

    @property
    def faults(self) -> Faults:
        return self.bench.dice.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        """Replace all faults; counts and random sequences start over."""
        self.bench.dice.reset(faults)

    @property
    def forged_fetches(self) -> int:
        """The number of downloads from links of forged callbacks."""
        return self.bench.files.forged_fetches

    @staticmethod
    def base_urls(origin: str) -> dict[str, str]:
        """Return the base URL of each provider's stand-in below *origin*."""
        return {stand_in.name: origin.rstrip("/") + stand_in.mount for stand_in in STAND_INS}

    def environment(self, origin: str) -> dict[str, str]:
        """Return the settings with which a client of the real APIs talks to this sandbox instead."""
        settings = self.bench.settings
        return {
            **{f"{name.upper()}_BASE_URL": url for name, url in self.base_urls(origin).items()},
            **{f"{name.upper()}_API_KEY": key for name, key in settings.api_keys.items()},
            "FREEPIK_WEBHOOK_SECRET": settings.freepik_webhook_secret,
            "FREEPIK_WEBHOOK_SECRET_ENCODING": settings.freepik_webhook_secret_encoding,
            "FREEPIK_API_KEY_HEADER": settings.freepik_api_key_header,
        }

    @asynccontextmanager
    async def serve(self, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """
        Serve from the running event loop: `async with sandbox.serve() as origin`.

        By default on a free loopback port. On exit, all its background work has ended.
        """
        named = self.bench.origin
        async with serving(self.app, host=host, port=port) as origin:
            self.bench.origin = named or origin
            self.bench.background.open()
            try:
                yield origin
            finally:
                await self.aclose()
                self.bench.origin = named

    async def idle(self) -> None:
        """Return once no task runs and no callback or retry is pending."""
        await self.bench.background.idle()

    async def reset(self) -> None:
        """Forget all tasks, files and counts, and restore the initial faults."""
        await self.bench.reset()

    async def aclose(self) -> None:
        """End all background work. Idempotent; `serve` does it."""
        await self.bench.aclose()

    async def trigger(
        self,
        provider: str,
        state: str,
        callback_url: str | None = None,
        task_id: str | None = None,
        *,
        origin: str = "http://127.0.0.1",
        twist: Twist = TRUE,
    ) -> dict[str, Any]:
        """
        Send one callback about a task that is in exactly *state*: a true one, but for *twist*.

        The task is *task_id*, put into that state, or a new one. The sandbox's faults don't apply. *origin* is where
        its links lead if the sandbox has no origin of its own. The result is about the first of several callbacks; a
        lost one has neither status nor error. Raises ValueError.
        """
        named = announced_state(provider, state)
        stand_in = self.stand_ins[provider]
        assert isinstance(stand_in, CallingStandIn)
        task = self.bench.tasks.find(provider, task_id) if task_id else None
        url = callback_url or (task.callback_url if task else None)
        if not is_url(url):
            raise ValueError("callback_url must be an http or https URL")
        assert url is not None
        if task is None:
            task = self._made(stand_in, url, task_id, self.bench.origin or origin)
        await self.bench.background.halt(task)
        await self.bench.put(stand_in, task, named)
        attempts = await self.bench.announcer.once(stand_in, task, url, twist)
        return {
            "provider": provider,
            "task_id": task.id,
            "state": named,
            "status": attempts[0].status if attempts else None,
            "error": attempts[0].error if attempts else None,
        }

    def _made(self, stand_in: StandIn, callback_url: str, task_id: str | None, origin: str) -> RemoteTask:
        order = Order(
            source=test_picture(160, 120),
            target=lambda shape: Target(shape.width * 2, shape.height * 2, "JPEG"),
            options={},
            callback_url=callback_url,
        )
        return self.bench.accept(stand_in, order, origin=origin, id=task_id, triggered=True)

    # --- The app ----------------------------------------------------------------------------------------------------

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                *(Mount(stand_in.mount, app=_router(stand_in, self.bench)) for stand_in in self.stand_ins.values()),
                Route("/files/{id}/{name}", self.bench.files.download),
                Route("/forged/{name}", self.bench.files.forged),
                Route("/_sandbox/tasks", self._tasks),
                Route("/_sandbox/faults", self._faults, methods=["GET", "POST"]),
                Route("/_sandbox/trigger", self._trigger, methods=["POST"]),
                Route("/_sandbox/reset", self._reset, methods=["POST"]),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.bench.background.open()
        try:
            yield
        finally:
            await self.aclose()

    async def _tasks(self, request: Request) -> Response:
        provider = request.query_params.get("provider")
        return JSONResponse(
            {
                "items": [task.facts() for task in self.tasks if provider in (None, task.provider)],
                "calls": {
                    name: {kind: self.calls(name, kind) for kind in ("submit", "status")}
                    for name in self.stand_ins
                    if provider in (None, name)
                },
                "forged_fetches": self.forged_fetches,
            }
        )

    async def _faults(self, request: Request) -> Response:
        if request.method == "POST":
            try:
                faults = Faults.model_validate_json(await request.body())
            except ValidationError as exc:
                return _refused(str(exc))
            if strangers := faults.per_provider.keys() - self.stand_ins.keys():
                return _refused(f"unknown provider: {', '.join(sorted(strangers))}")
            self.faults = faults
        struck: dict[str, dict[str, int]] = {}
        for (provider, fault), count in self.bench.dice.struck.items():
            struck.setdefault(provider, {})[fault] = count
        return JSONResponse({"faults": self.faults.model_dump(exclude_unset=True), "struck": struck})

    async def _trigger(self, request: Request) -> Response:
        try:
            asked = json.loads(await request.body())
            if not isinstance(asked, dict):
                raise ValueError("a JSON object is needed")
            words = [asked.get(name) for name in ("provider", "state", "callback_url", "task_id")]
            if not all(word is None or isinstance(word, str) for word in words):
                raise ValueError("provider, state, callback_url and task_id are texts")
            provider, state, callback_url, task_id = words
            origin = f"{request.url.scheme}://{request.url.netloc}"
            twist = Twist.from_json(asked.get("overrides"), asked.get("faults"))
            answer = await self.trigger(provider or "", state or "", callback_url, task_id, origin=origin, twist=twist)
            return JSONResponse(answer)
        except (ValueError, RecursionError) as exc:
            return _refused(str(exc))

    async def _reset(self, request: Request) -> Response:
        await self.reset()
        return JSONResponse({"ok": True})


def _router(stand_in: StandIn, bench: Bench) -> Router:
    async def submit(request: Request) -> Response:
        return await bench.submit(stand_in, request)

    async def status(request: Request) -> Response:
        return await bench.status(stand_in, request)

    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        await stand_in.not_found()(scope, receive, send)

    return Router(stand_in.routes(submit=submit, status=status), default=not_found, redirect_slashes=False)


def _refused(why: str) -> Response:
    return JSONResponse({"error": why}, 400)
