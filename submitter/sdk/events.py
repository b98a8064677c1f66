"""
The event stream: followed through disconnects and restarts, each event once and in order. No I/O.

A reader is a position and nothing more. Every connection begins after the last event that was emitted, and an event
that still arrives twice is dropped by its position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import httpx

from submitter.errors import Conflict, NoReceiver, Overloaded
from submitter.sdk.event_types import Event, parse_event
from submitter.sdk.link import CUT, Link, is_hopeless, joined, pause_seconds
from submitter.sdk.steps import Body, Close, Emit, Sleep, Steps, Stream, next_piece, open_stream
from submitter.sdk.values import Job

_SILENCE_SECONDS = 45.0  # three of the receiver's heartbeats


def events(link: Link, *, after: int | None, params: Mapping[str, str], timeout: float | None = None) -> Steps[None]:
    """
    Emit the events after the position *after*, without end; None: those that are written from now on.

    Raises `NoReceiver` if none answers at first, and later if *timeout* is given and it is unreachable for longer. If
    *after* lies beyond the log (it was restored, or is another receiver's), continue from where the receiver says:
    before the first event since the restore.
    """
    position, tries, opened = after, 0, False
    deadline: float | None = link.deadline(timeout)
    while True:
        tries += 1
        try:
            stream = yield from open_events(link, params, position, silence_seconds=_SILENCE_SECONDS)
            opened = True
            if position is None:
                position = _start(stream)
            deadline = None if timeout is None else link.deadline(timeout)
            frames = Frames()
            while (piece := (yield from next_piece(stream))) is not None:
                tries = 0
                deadline = None if timeout is None else link.deadline(timeout)
                for event in frames.feed(piece):
                    if event.position is not None and event.position > position:
                        position = event.position
                        yield Emit(event)
            yield Close(stream)
            reason = f"the stream of {link.url} ended; resuming it"
        except Conflict as exc:
            position, tries = _resumed(exc), 0
            reason = f"{exc.detail}; going on from position {position}"
        except httpx.DecodingError as exc:
            raise link.compressed() from exc
        except (httpx.RequestError, Overloaded, NoReceiver) as exc:
            if isinstance(exc, NoReceiver) and exc.code in ("not_a_receiver", "wrong_scheme"):
                raise
            if tries == 1 and not opened and isinstance(exc, CUT) and (yield from link.speaks_tls()):
                raise link.wrong_scheme() from exc
            if is_hopeless(exc) or (deadline is not None and link.clock() >= deadline):
                raise link.gone(exc) from exc
            reason = f"the stream of {link.url} was cut ({type(exc).__name__}); resuming it"
        link.on_retry(reason)
        yield Sleep(pause_seconds(tries))


def params(*, types: Sequence[str], providers: Sequence[str], job: Job | str | None) -> dict[str, str]:
    """Return the query of a stream, which filters its events."""
    chosen = {
        "type": joined(types),
        "provider": joined(providers),
        "job": job.id if isinstance(job, Job) else job or "",
    }
    return {name: value for name, value in chosen.items() if value}


def open_events(
    link: Link, params: Mapping[str, str], position: int | None, *, silence_seconds: float
) -> Steps[Stream]:
    """Open the stream after *position*. Raises the error for the receiver's refusal, or `httpx.RequestError`."""
    headers = {"accept": "text/event-stream"}
    if position is not None:
        headers["last-event-id"] = str(position)
    stream = yield from open_stream(
        link.request("GET", "/v1/events", patience=silence_seconds, headers=headers, params=dict(params))
    )
    response = stream.response
    if response.is_success and response.headers.get("content-type", "").startswith("text/event-stream"):
        return stream
    if response.is_success:
        yield Close(stream)
        raise link.stranger()
    link.checked((yield from whole(stream)))
    raise AssertionError("a refusal raises")


def whole(stream: Stream) -> Steps[httpx.Response]:
    """Return the response of *stream* with its body read."""
    body = Body(stream.response)
    while (piece := (yield from next_piece(stream))) is not None:
        body.add(piece)
    yield Close(stream)
    return body.whole()


class Frames:
    """Parses server-sent events from a stream's bytes. Comments and unknown fields are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that *piece* completes. An unfinished event is dropped."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            if text:
                name, _, value = text.partition(":")
                self._fields[name] = value.removeprefix(" ")
                continue
            fields, self._fields = self._fields, {}
            if "data" in fields and fields.get("id", "").isdecimal():
                yield parse_event(fields["data"], event_id=fields.get("webhook-id", ""), position=int(fields["id"]))


def _start(stream: Stream) -> int:
    """Return the position at which a stream began that was opened without one."""
    given = stream.response.headers.get("last-event-id", "")
    return int(given) if given.isdecimal() else 0


def _resumed(conflict: Conflict) -> int:
    """Return the position for a reader ahead of the log; older receivers name only their newest event."""
    position = conflict.problem.get("resume_after", conflict.problem.get("newest"))
    if conflict.code != "position_ahead" or not isinstance(position, int):
        raise conflict
    return position
