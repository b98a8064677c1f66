"""Drives a call of the SDK by hand: scripted answers, and a clock that only `Sleep` and silence move."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from submitter.sdk.link import Link
from submitter.sdk.steps import Close, Emit, Open, Piece, Sleep, Steps, Stream, Work

Outcome = httpx.Response | Exception


def answer(status: int, body: Any = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, content=json.dumps(body or {}).encode())


def streamed(*pieces: bytes | Exception, start: int = 0) -> tuple[httpx.Response, list[bytes | Exception]]:
    headers = {"content-type": "text/event-stream; charset=utf-8", "last-event-id": str(start)}
    return httpx.Response(200, headers=headers), list(pieces)


def frame(position: int, kind: str = "provider.resumed", data: Any = None) -> bytes:
    body = {"type": kind, "timestamp": "2026-01-01T00:00:00Z", "data": data or {"name": "freepik", "paused": None}}
    lines = f"id: {position}\nevent: {kind}\nwebhook-id: evt_{position}\ndata: {json.dumps(body)}\n\n"
    return lines.encode()


@dataclass
class ByHand:
    """Answers requests with *answers* and opened streams with *streams*, in order; the last of each is repeated."""

    answers: Sequence[Outcome] = ()
    streams: Sequence[Any] = ()
    now: float = 0.0
    silence_seconds: float = 0.0
    """How long a request that fails has lasted."""
    requests: list[httpx.Request] = field(default_factory=list)
    sleeps: list[float] = field(default_factory=list)
    emitted: list[Any] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    open: int = 0
    _asked: int = 0
    _opened: int = 0

    def link(self, **options: Any) -> Link:
        return Link("http://receiver.test", "token", clock=lambda: self.now, on_retry=self.messages.append, **options)

    def drive(self, steps: Steps[Any], *, values: int | None = None) -> Any:
        """The result of *steps*; or None once it has emitted so many *values*."""
        outcome: Any = None
        pieces: dict[Stream, list[bytes | Exception]] = {}
        try:
            step = steps.send(None)
            while True:
                failure: Exception | None = None
                outcome = None
                match step:
                    case httpx.Request() if step.url.scheme == "https":
                        outcome = httpx.ConnectError("TLS is not spoken here")
                    case httpx.Request():
                        outcome = self._next(step, self.answers, self._asked)
                        self._asked += 1
                    case Open(request):
                        outcome = self._next(request, self.streams, self._opened)
                        self._opened += 1
                        if isinstance(outcome, tuple):
                            response, script = outcome
                            response.request = request
                            outcome = Stream(response, iter(()))
                            pieces[outcome] = list(script)
                            self.open += 1
                    case Piece(stream):
                        outcome = pieces[stream].pop(0) if pieces[stream] else None
                    case Close():
                        self.open -= 1
                    case Sleep(seconds):
                        self.sleeps.append(seconds)
                        self.now += seconds
                    case Work(function):
                        outcome = function()
                    case Emit(value):
                        self.emitted.append(value)
                        if len(self.emitted) == values:
                            return None
                if isinstance(outcome, Exception):
                    self.now += self.silence_seconds
                    failure = outcome
                step = steps.send(outcome) if failure is None else steps.throw(failure)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

    def _next(self, request: httpx.Request, script: Sequence[Any], index: int) -> Any:
        self.requests.append(request)
        outcome = script[min(index, len(script) - 1)]
        if isinstance(outcome, httpx.Response):
            outcome.request = request
        return outcome
