"""
The steps of a call. A call is a generator that yields steps and is sent their results; it does no I/O itself.

    httpx.Request   send it, and return the whole response; `httpx.RequestError` is thrown in if there is none
    Open            send it, and return a `Stream` as soon as the head is there
    Piece           the next bytes of a stream, None at its end
    Close           drop a stream
    Sleep           wait for a number of seconds
    Work            call a function that may block, and return its result
    Emit            give a value to the iterating caller, and go on when it asks for the next

Tests drive calls by hand; `Client` and `AsyncClient` drive them with httpx. The driver of a call closes its streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from submitter.bounded import MAX_ANSWER_BYTES, MAX_FILE_BYTES

T = TypeVar("T")

_FRAMING = frozenset({"content-encoding", "content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Open:
    request: httpx.Request


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A response whose body is read piece by piece."""

    response: httpx.Response
    pieces: Iterator[bytes] | AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Piece:
    stream: Stream


@dataclass(frozen=True, slots=True)
class Close:
    stream: Stream


@dataclass(frozen=True, slots=True)
class Work:
    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Emit:
    value: Any


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The end of a call, and its result."""

    value: T


Action = httpx.Request | Open | Piece | Close | Sleep | Work
Steps = Generator[Action | Emit, Any, T]


class Body:
    """
    A body that grows piece by piece up to its limit: 64 MiB, for images 1 GiB.

    Raises `httpx.RemoteProtocolError` beyond it, and `httpx.DecodingError` for a coding that was not requested, which
    could swell.
    """

    def __init__(self, response: httpx.Response) -> None:
        check_coding(response)
        self._response = response
        self._content = bytearray()
        image = response.headers.get("content-type", "").startswith("image/")
        self._max_bytes = MAX_FILE_BYTES if image else MAX_ANSWER_BYTES

    def add(self, piece: bytes) -> None:
        self._content += piece
        if len(self._content) > self._max_bytes:
            raise httpx.RemoteProtocolError(f"the answer is longer than {self._max_bytes} bytes")

    def whole(self) -> httpx.Response:
        """Return the response with the body in memory."""
        response = self._response
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _FRAMING]
        return httpx.Response(
            response.status_code, headers=headers, content=bytes(self._content), request=response.request
        )


def check_coding(response: httpx.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx.DecodingError("the answer is compressed, which was not asked for; does a proxy do that?")


def send(request: httpx.Request) -> Steps[httpx.Response]:
    response: httpx.Response = yield request
    return response


def open_stream(request: httpx.Request) -> Steps[Stream]:
    stream: Stream = yield Open(request)
    check_coding(stream.response)
    return stream


def next_piece(stream: Stream) -> Steps[bytes | None]:
    piece: bytes | None = yield Piece(stream)
    return piece


def work(function: Callable[[], T]) -> Steps[T]:
    result: T = yield Work(function)
    return result
