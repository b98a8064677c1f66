"""
A callback is answered from the HTTP protocol or by the application, and nobody can see which.

Each case is sent to two receivers, over real sockets: to one whose server offers callbacks to the direct route, and to
one whose server does not. The bytes that come back, what is kept, what is counted and what is logged are the same.
"""

from __future__ import annotations

import asyncio
import functools
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from receiver.domain.jobs import Job
from receiver.domain.tokens import Tokens
from receiver.runtime.direct_protocol import DirectRequest, DirectRoute
from submitter.vocabulary import State
from tests.receiver.web.test_forgery import REFUSED
from tests.support.running_receiver import (
    SECRET_KEY,
    RunningReceiver,
    at_the_wire,
    freepik_body,
    novita_body,
    running_receiver,
    signed,
)
from tests.support.waiting import patience

NO_ROUTE = DirectRoute(re.compile(rb"(?!)"), lambda request: False)
PROBE = b"GET /nothing-here HTTP/1.1\r\nhost: x\r\nx-request-id: probe\r\nconnection: close\r\n\r\n"
MESSAGE = "msg_of_this_test"
Pieces = Sequence[bytes]


@dataclass(frozen=True)
class Case:
    """Data to send, in pieces that arrive apart, and the number of its answers, of which `direct` are direct."""

    sent: Callable[[RunningReceiver, Job], Pieces]
    direct: int = 0
    answers: int = 1
    provider: str = "freepik"
    state: State = State.RUNNING
    ends: bool = False
    """The server ends the connection behind the last answer."""


@functools.cache
def genuine(body: bytes) -> dict[str, str]:
    """The headers of a signed callback, the same for both receivers."""
    return signed(body, message=MESSAGE)


def post(
    path: str, body: bytes, headers: dict[str, str] | None = None, *, version: str = "1.1", method: str = "POST"
) -> bytes:
    given = genuine(body) if headers is None else headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    head = f"{method} {path} HTTP/{version}\r\nhost: hooks.example.com\r\n{lines}content-length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


def completed(job: Job) -> bytes:
    return (freepik_body if job.provider == "freepik" else novita_body)(job.remote_id or "", "COMPLETED")


def ordinary(
    change: Callable[[bytes], bytes] = lambda sent: sent, **headers: str
) -> Callable[[RunningReceiver, Job], Pieces]:
    """A genuine callback with more *headers*, its bytes changed by *change*."""

    def sent(here: RunningReceiver, job: Job) -> Pieces:
        body = completed(job)
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return [change(post(here.path(job), body, {**genuine(body), **more}))]

    return sent


def to(path: Callable[[RunningReceiver, Job], str], **options: Any) -> Callable[[RunningReceiver, Job], Pieces]:
    return lambda here, job: [post(path(here, job), completed(job), **options)]


def with_body(
    make: Callable[[Job], bytes], headers: dict[str, str] | None = None
) -> Callable[[RunningReceiver, Job], Pieces]:
    return lambda here, job: [post(here.path(job), make(job), headers)]


def in_pieces(*places: int) -> Callable[[RunningReceiver, Job], Pieces]:
    """A genuine callback cut at *places*."""

    def sent(here: RunningReceiver, job: Job) -> Pieces:
        whole = post(here.path(job), completed(job))
        ends = [place % len(whole) for place in places] + [len(whole)]
        return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    return sent


def chunked(here: RunningReceiver, job: Job) -> Pieces:
    body = completed(job)
    head = post(here.path(job), body).partition(b"\r\n\r\n")[0]
    head = re.sub(rb"content-length: \d+", b"transfer-encoding: chunked", head)
    return [head + b"\r\n\r\n%x\r\n%s\r\n0\r\ntrailer: x\r\n\r\n" % (len(body), body)]


def twice(here: RunningReceiver, job: Job) -> Pieces:
    return [post(here.path(job), completed(job)) * 2]


def one_behind_another(here: RunningReceiver, job: Job) -> Pieces:
    whole = post(here.path(job), completed(job))
    return [whole, whole, whole]


def by_the_old_key(here: RunningReceiver, job: Job) -> str:
    return f"/callbacks/freepik/{Tokens(['the-key-before']).callback(job.id, 'freepik')}"


def minted_long_ago(here: RunningReceiver, job: Job) -> str:
    return f"/callbacks/freepik/{Tokens([SECRET_KEY], clock=lambda: 1_600_000_000).callback(job.id, 'freepik')}"


@functools.cache
def forged_headers(name: str, body: bytes) -> dict[str, str]:
    return REFUSED[name].headers(body)


def forged(name: str) -> Callable[[RunningReceiver, Job], Pieces]:
    attempt = REFUSED[name]
    return lambda here, job: [
        post(attempt.path(here, job, job), attempt.sent(completed(job)), forged_headers(name, completed(job)))
    ]


CASES = {
    "ordinary": Case(ordinary(), direct=1),
    "with an id of its request": Case(ordinary(x_request_id="abc-123"), direct=1),
    "with an id that is not sane": Case(ordinary(x_request_id="a b\tc"), direct=1),
    "through a proxy": Case(ordinary(x_forwarded_for="198.51.100.1, 203.0.113.7"), direct=1),
    "through a proxy that names a port": Case(ordinary(x_forwarded_for="203.0.113.7:4711"), direct=1),
    "through a proxy that names nobody": Case(ordinary(x_forwarded_for=""), direct=1),
    "two proxies' headers": Case(
        ordinary(
            lambda sent: sent.replace(b"host:", b"X-Forwarded-For: 203.0.113.1\r\nhost:", 1), x_forwarded_for="::1"
        ),
        direct=1,
    ),
    "with white space around values": Case(
        ordinary(lambda sent: sent.replace(b"webhook-id: ", b"webhook-id: \t ").replace(b"v1,", b" v1,", 1)), direct=1
    ),
    "with names in capitals": Case(ordinary(lambda sent: sent.replace(b"webhook-", b"WebHook-")), direct=1),
    "with bytes beyond ASCII": Case(ordinary(x_name="caf\xe9\xff", x_twice="1"), direct=1),
    "with a name twice": Case(ordinary(lambda sent: sent.replace(b"host:", b"x-a: 1\r\nx-a: 2\r\nhost:", 1)), direct=1),
    "without a body": Case(with_body(lambda job: b""), direct=1),
    "that is not text": Case(with_body(lambda job: bytes(range(256))), direct=1),
    "of 20 kB": Case(with_body(lambda job: completed(job) + b" " * 20_000), direct=1),
    "that asks to close": Case(ordinary(connection="close"), direct=1, ends=True),
    "that asks to keep alive": Case(ordinary(connection="keep-alive"), direct=1),
    "of HTTP/1.0": Case(to(lambda here, job: here.path(job), version="1.0"), direct=1, ends=True),
    "of a finished job": Case(ordinary(), direct=1, state=State.SUCCEEDED),
    "three, each behind the answer to the last": Case(one_behind_another, direct=3, answers=3),
    "two signatures": Case(ordinary(lambda sent: re.sub(rb"(v1,[^\r]+)", rb"v1,AAAA \1", sent)), direct=1),
    "two in one go": Case(twice, direct=1, answers=2),
    "cut in its head": Case(in_pieces(40), direct=1),
    "cut between head and body": Case(lambda here, job: in_pieces(-len(completed(job)))(here, job)),
    "cut in its body": Case(in_pieces(-10)),
    "cut all over": Case(in_pieces(10, 90, 300, -20, -10)),
    "chunked": Case(chunked),
    "that waits to continue": Case(ordinary(expect="100-continue"), answers=2),
    "that offers an upgrade": Case(ordinary(connection="Upgrade", upgrade="h2c")),
    "with a slash at its end": Case(to(lambda here, job: here.path(job) + "/")),
    "with a query": Case(to(lambda here, job: here.path(job) + "?a=b")),
    "with a percent sign": Case(to(lambda here, job: here.path(job).replace(".", "%2E"))),
    "of an absolute URL": Case(to(lambda here, job: "http://hooks.example.com" + here.path(job))),
    "asked for": Case(lambda here, job: [post(here.path(job), b"", {}, method="GET")]),
    "put": Case(lambda here, job: [post(here.path(job), b"{}", {}, method="PUT")]),
    "too large": Case(with_body(lambda job: b"x" * 60_000)),
    "of an unsigned provider": Case(ordinary(), provider="novita"),
    "by the key before": Case(to(by_the_old_key)),
    "long ago, and open": Case(to(minted_long_ago)),
    "long ago, and ended": Case(to(minted_long_ago), state=State.SUCCEEDED),
    "no HTTP behind it": Case(lambda here, job: [post(here.path(job), b"{}", {}) + b"\x16\x03\x01" * 9], ends=True),
    "a length that is none": Case(
        ordinary(lambda sent: re.sub(rb"content-length: \d+", b"content-length: x", sent)), ends=True
    ),
    "two lengths": Case(ordinary(content_length="3"), ends=True),
    **{
        f"forged: {name}": Case(forged(name))
        for name, attempt in REFUSED.items()
        if attempt.answer != 200 and "another job's id" not in name
    },
}


class Counted:
    """A direct route that counts what it takes."""

    def __init__(self, route: DirectRoute) -> None:
        self.taken = 0
        self._route = route

    def route(self) -> DirectRoute:
        return DirectRoute(self._route.path, self._take)

    def _take(self, request: DirectRequest) -> bool:
        taken = self._route.take(request)
        self.taken += taken
        return taken


async def transcript(port: int, pieces: Pieces, *, answers: int, ends: bool) -> bytes:
    """All that comes back, without the time of day; behind the answers another request shows what is left open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    came = b""
    async with patience():
        for number, piece in enumerate(pieces):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
            if answers == len(pieces):
                came += await one_answer(reader)
            elif number == len(pieces) - 1:
                for _ in range(answers):
                    came += await one_answer(reader)
        if not ends:
            writer.write(PROBE)
        came += await reader.read()
    writer.close()
    return re.sub(rb"\r\ndate: [^\r]+", b"\r\ndate: (now)", came)


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


async def outcome(here: RunningReceiver, port: int, case: Case, number: int) -> dict[str, Any]:
    """Everything that can be seen of *case*, sent to *port* of *here*, the ids of job and request left out."""
    job = await here.job(case.provider, case.state, remote_id=f"task-{number}")
    counts = _counts(here)
    with capture_logs() as lines:
        came = await transcript(port, case.sent(here, job), answers=case.answers, ends=case.ends)
        await here.read()
    after = _counts(here)
    return {
        "bytes": came,
        "evidence": [
            (
                *(piece.source, piece.provider, piece.headers, piece.body, piece.verdict, piece.trust, piece.status),
                *(piece.peer, piece.delivery_id, piece.note, piece.read_at is not None),
            )
            for piece in await here.evidence(job)
            if piece.source.value == "callback"
        ],
        "counts": {name: after[name] - counts.get(name, 0) for name in after if after[name] != counts.get(name, 0)},
        "lines": [
            {**line, "job": line.get("job") == job.id, "request_id": (line.get("request_id") or "")[:4] == "req_"}
            for line in lines
            if line["event"].startswith(("callback", "request_"))
        ],
        "state": (await here.now(job)).state,
    }


def _counts(here: RunningReceiver) -> dict[tuple[Any, ...], float]:
    families = here.receiver.metrics.registry.collect()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        if family.name in ("receiver_callbacks", "receiver_callback_ack_seconds", "receiver_refused_callbacks_not_kept")
        for sample in family.samples
        if sample.name.endswith(("_total", "_count"))
    }


@pytest.mark.parametrize("of", range(6))
async def test_nobody_can_tell_by_which_way_a_callback_was_answered(of: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_callback_bytes": 50_000, "secret_keys": f"{SECRET_KEY},the-key-before"}
    async with (
        running_receiver(tmp_path / "direct", **settings) as direct,
        running_receiver(tmp_path / "application", **settings) as application,
    ):
        counted = Counted(direct.receiver.direct)
        trusted = ("127.0.0.1",)
        async with (
            at_the_wire(direct.receiver, trusted=trusted, direct=counted.route()) as direct_port,
            at_the_wire(application.receiver, trusted=trusted, direct=NO_ROUTE) as application_port,
        ):
            for number, (name, case) in list(enumerate(CASES.items()))[of::6]:
                counted.taken = 0
                expected = await outcome(application, application_port, case, number)
                found = await outcome(direct, direct_port, case, number)
                assert found == expected, name
                assert counted.taken == case.direct, name
                assert found["bytes"].startswith(b"HTTP/1.1 "), name


@pytest.mark.sqlite(reason="another program holds the file's lock")
async def test_what_can_not_be_recorded_is_answered_alike(tmp_path: Path) -> None:
    """Another process holds the write lock for longer than a provider waits."""
    answers = []
    for way in ("direct", "application"):
        async with running_receiver(tmp_path / way) as here:
            job = await here.job(remote_id="task")
            counted = Counted(here.receiver.direct)
            route = counted.route() if way == "direct" else NO_ROUTE
            other = sqlite3.connect(here.receiver.settings.database_path, isolation_level=None, check_same_thread=False)
            other.execute("BEGIN IMMEDIATE")
            with capture_logs() as lines:
                async with at_the_wire(here.receiver, direct=route) as port:
                    came = await transcript(port, [post(here.path(job), completed(job))], answers=1, ends=False)
            other.execute("ROLLBACK")
            other.close()
            assert counted.taken == (way == "direct")
            callbacks = [
                {**line, "job": line["job"] == job.id, "request_id": None}
                for line in lines
                if line["event"].startswith("callback")
            ]
            answers.append((came, callbacks))
    assert answers[0] == answers[1]
    assert answers[0][0].startswith(b"HTTP/1.1 503 ")


@pytest.mark.sqlite(reason="another program holds the file's lock")
async def test_a_sender_that_is_gone_before_its_answer_is_kept_all_the_same(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        counted = Counted(here.receiver.direct)
        async with at_the_wire(here.receiver, direct=counted.route()) as port:
            other = sqlite3.connect(here.receiver.settings.database_path, isolation_level=None, check_same_thread=False)
            other.execute("BEGIN IMMEDIATE")
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(here.path(job), completed(job)))
            async with patience():
                while not counted.taken:
                    await asyncio.sleep(0.01)
            writer.transport.abort()
            other.execute("ROLLBACK")
            other.close()
            await here.becomes(job, State.SUCCEEDED)
