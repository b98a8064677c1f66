"""Hand-written answers and callbacks, to drive exchanges without any server."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from hypothesis import strategies as st

from submitter.vocabulary import Callback, Exchange, T

SAMPLES = Path(__file__).parent.parent / "samples"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


def sample(provider: str, name: str) -> Any:
    return json.loads((SAMPLES / provider / f"{name}.json").read_text())


def samples(provider: str) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted((SAMPLES / provider).glob("*.json"))]


def answer(body: Any, status: int = 200, **headers: str) -> httpx.Response:
    """A provider's answer: JSON of *body*, or bytes as they are."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, bytes):
        return httpx.Response(status, headers=named, content=body)
    return httpx.Response(
        status, headers={"content-type": "application/json", "date": DATE, **named}, content=json.dumps(body).encode()
    )


def callback(body: Any, **headers: str) -> Callback:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    pairs = tuple((name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items())
    return Callback(headers=pairs, body=content, received_at=NOW)


def first_request(exchange: Exchange[Any]) -> httpx.Request:
    request = next(exchange)
    exchange.close()
    return request


def finish(exchange: Exchange[T], response: httpx.Response) -> T:
    """The result of an exchange of one request."""
    next(exchange)
    try:
        exchange.send(response)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("the exchange wants to send a second request")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["https://x.example/a", "http://", "1" * 40, "9" * 400, "\ud800", "\x00", "."]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn, provider: str) -> Any:
    """A sample with one to three of its values replaced by anything or taken away."""
    body = json.loads(json.dumps(draw(st.sampled_from(samples(provider)))))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(body))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        if draw(st.booleans()) or isinstance(holder, list):
            holder[key] = draw(JSON_VALUES)
        else:
            del holder[key]
    return body


def hostile_bodies(provider: str) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=200) | (mutated(provider) | JSON_VALUES).map(lambda value: json.dumps(value).encode())


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
