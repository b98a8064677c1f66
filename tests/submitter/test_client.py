"""The client against real servers on the loopback that misbehave in one way each."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from submitter.client import HttpSender, Submitter, converse
from submitter.errors import AnswerLost, NotSent, ProviderBusy, ProviderError, TaskRefused
from submitter.images import json_request, plain_request
from submitter.parsing import EMPTY_POLLS
from submitter.provider import Rhythm
from submitter.providers import build
from submitter.vocabulary import Cost, Exchange, Picture, Report, State
from tests.support.bombs import mebibytes
from tests.support.pictures import big_picture, small_picture

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, *, receive_buffer: int | None = None) -> AsyncIterator[str]:
    """Serve *handler* on a free port; every connection is closed at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = socket.create_server(("127.0.0.1", 0))
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server = await asyncio.start_server(handle, sock=listener)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
    )
    return head, await reader.readexactly(length)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def answer(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def upload(url: str, picture: Picture) -> httpx.Request:
    return json_request("POST", url, {}, {"a": 1}, picture=picture, at=("image",))


async def test_an_upload_arrives_whole_and_its_answer_comes_back(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append((await read_request(reader))[1])
        writer.write(answer(b'{"ok":1}'))

    request_bytes = None
    async with serving(handler) as url, HttpSender() as sender:
        request = upload(url, big_picture(tmp_path))
        response = await sender.send(request, timeout_seconds=60)
        request_bytes = request.read()
    assert (response.status_code, response.content) == (200, b'{"ok":1}')
    assert got == [request_bytes]


async def test_a_refused_connection_was_not_sent() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        async with HttpSender() as sender:
            with pytest.raises(NotSent) as caught:
                await sender.send(plain_request("GET", url, {}), timeout_seconds=60)
    assert caught.value.code == "no_connection"


async def test_a_host_that_speaks_no_tls_was_not_sent_to() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"this is not TLS\r\n\r\n")

    async with serving(handler) as url, HttpSender() as sender:
        with pytest.raises(NotSent):
            await sender.send(plain_request("GET", url.replace("http:", "https:"), {}), timeout_seconds=60)


async def test_a_reset_in_the_middle_of_the_body_was_not_sent(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(200_000)
        reset(writer)

    async with serving(handler) as url, HttpSender() as sender:
        with pytest.raises(NotSent) as caught:
            await sender.send(upload(url, big_picture(tmp_path)), timeout_seconds=60)
    assert caught.value.code == "cut_while_writing"


async def test_a_reset_after_the_body_is_a_lost_answer(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        reset(writer)

    async with serving(handler) as url, HttpSender() as sender:
        with pytest.raises(AnswerLost) as caught:
            await sender.send(upload(url, big_picture(tmp_path)), timeout_seconds=60)
    assert caught.value.code == "reset"


async def test_a_close_without_an_answer_is_a_lost_answer() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with serving(handler) as url, HttpSender() as sender:
        with pytest.raises(AnswerLost):
            await sender.send(plain_request("GET", url, {}), timeout_seconds=60)


@pytest.mark.parametrize("ending", ["closes", "resets", "stays silent"])
@pytest.mark.parametrize("status", ["413 Content Too Large", "429 Too Many Requests"])
async def test_an_early_refusal_is_read_while_the_body_is_being_written(
    tmp_path: Path, status: str, ending: str
) -> None:
    over = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b'{"message":"no"}', status, "Retry-After: 7\r\n"))
        await writer.drain()
        if ending == "resets":
            await reader.read(1000)
            reset(writer)
        elif ending == "stays silent":
            await over.wait()

    async with serving(handler) as url, HttpSender() as sender:
        response = await sender.send(upload(url, big_picture(tmp_path)), timeout_seconds=60)
        over.set()
    assert response.status_code == int(status[:3])
    assert response.headers["retry-after"] == "7"
    assert response.json() == {"message": "no"}


async def test_silence_after_the_whole_body_is_a_lost_answer() -> None:
    over = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await over.wait()

    async with serving(handler) as url, HttpSender() as sender:
        with pytest.raises(AnswerLost) as caught:
            await sender.send(json_request("POST", url, {}, {}), timeout_seconds=0.3)
        over.set()
    assert caught.value.code == "timeout"


async def test_a_server_that_stops_reading_was_not_sent_to(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()

    async with serving(handler) as url, HttpSender() as sender:
        with pytest.raises(NotSent):
            await sender.send(upload(url, big_picture(tmp_path)), timeout_seconds=60, stall_seconds=0.5)
        over.set()


@pytest.mark.parametrize("answered", [True, False])
async def test_a_slow_line_that_moves_is_waited_for_and_the_answers_time_begins_behind_the_body(
    tmp_path: Path, answered: bool
) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    whole_at = 0.0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal whole_at
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
        while left:
            left -= len(await reader.readexactly(min(left, 100_000)))
            await asyncio.sleep(0.1)
        whole_at = loop.time()
        if answered:
            writer.write(answer(b'{"ok":1}'))
        else:
            await over.wait()

    # Its window is small, so that it is the reader who says how fast the body leaves.
    async with serving(handler, receive_buffer=64 * 1024) as url, HttpSender() as sender:
        began = loop.time()
        sending = sender.send(upload(url, big_picture(tmp_path, 2 << 20)), timeout_seconds=1.0, stall_seconds=60)
        if answered:
            assert (await sending).status_code == 200
        else:
            with pytest.raises(AnswerLost) as caught:
                await sending
            assert caught.value.code == "timeout"
        over.set()
    assert whole_at - began > 2.0


@pytest.mark.parametrize(("status", "lost"), [("200 OK", True), ("429 Too Many Requests", False)])
async def test_a_cut_answer_is_lost_only_if_its_status_settles_nothing(status: str, lost: bool) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b'{"task_id":"t"}', status)[:-4])

    async with serving(handler) as url, HttpSender() as sender:
        sending = sender.send(json_request("POST", url, {}, {}), timeout_seconds=60)
        if lost:
            with pytest.raises(AnswerLost) as caught:
                await sending
            assert caught.value.code == "answer_cut"
        else:
            assert (await sending).status_code == 429


async def test_an_answer_beyond_the_limit_is_lost_not_held_in_memory() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b"x" * 100_000))

    async with serving(handler) as url, HttpSender() as sender:
        with pytest.raises(AnswerLost) as caught:
            await sender.send(json_request("POST", url, {}, {}), timeout_seconds=60, max_answer_bytes=10_000)
    assert caught.value.code == "answer_too_large"


@pytest.mark.parametrize("label", ["gzip", "gzip, gzip"])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
async def test_a_compressed_answer_that_swells_costs_no_more_than_the_limit(label: str, status: str) -> None:
    bomb = mebibytes(200)
    bomb = gzip.compress(bomb) if label == "gzip, gzip" else bomb

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(bomb, status, f"Content-Encoding: {label}\r\n"))

    tracemalloc.start()
    try:
        async with serving(handler) as url, HttpSender() as sender:
            sending = sender.send(json_request("POST", url, {}, {}), timeout_seconds=30, max_answer_bytes=4 << 20)
            if status == "200 OK":
                with pytest.raises(AnswerLost):
                    await sending
            else:
                assert len((await sending).content) <= 1 << 20
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20


async def test_a_gzip_answer_that_was_not_asked_for_is_read() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(gzip.compress(b'{"task_id":"t"}'), "200 OK", "Content-Encoding: gzip\r\n"))

    async with serving(handler) as url, HttpSender() as sender:
        response = await sender.send(json_request("POST", url, {}, {}), timeout_seconds=60)
    assert response.json() == {"task_id": "t"}


async def test_submits_use_fresh_connections_and_polls_reuse_one() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while not reader.at_eof():
            await read_request(reader)
            writer.write(answer(b"{}"))

    async with serving(handler) as url, HttpSender() as sender:
        for _ in range(3):
            await sender.send(json_request("POST", url, {}, {}), timeout_seconds=60)
        fresh = connections
        for _ in range(3):
            await sender.send(json_request("POST", url, {}, {}), timeout_seconds=60, fresh=False)
    assert (fresh, connections - fresh) == (3, 1)


async def test_redirects_are_returned_and_not_followed() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer(b"", "302 Found", "Location: /elsewhere\r\n"))

    async with serving(handler) as url, HttpSender() as sender:
        assert (await sender.send(plain_request("GET", url, {}), timeout_seconds=60)).status_code == 302


async def test_cancelling_a_send_passes_through_and_leaves_the_wire_usable() -> None:
    arrived, over = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read_request(reader)
        if b"/hang" in head:
            arrived.set()
            await over.wait()
        writer.write(answer(b"{}"))

    async with serving(handler) as url, HttpSender() as sender:
        sending = asyncio.create_task(sender.send(plain_request("GET", f"{url}/hang", {}), timeout_seconds=60))
        await arrived.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        over.set()
        assert (await sender.send(plain_request("GET", url, {}), timeout_seconds=60)).status_code == 200


async def test_a_file_that_vanished_is_the_tasks_fault_not_the_networks(tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    picture = big_picture(tmp_path)
    assert picture.path is not None
    picture.path.unlink()
    async with serving(handler) as url, HttpSender() as sender:
        with pytest.raises(TaskRefused) as caught:
            await sender.send(upload(url, picture), timeout_seconds=60)
    assert caught.value.code == "image_gone"


async def test_the_exchange_is_closed_when_sending_fails() -> None:
    closed = False

    def exchange() -> Exchange[int]:
        nonlocal closed
        try:
            yield plain_request("GET", "http://127.0.0.1/", {})
            return 1
        finally:
            closed = True

    async def send(request: httpx.Request) -> httpx.Response:
        raise NotSent("no", code="no_connection")

    with pytest.raises(NotSent):
        await converse(exchange(), send)
    assert closed


async def test_a_script_submits_and_polls_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read_request(reader)
        path = head.split(b" ")[1].decode()
        seen.append(path)
        if path == "/start-task" and len(seen) == 1:
            writer.write(answer(b'"slow down"', "429 Too Many Requests", "Retry-After: 0\r\n"))
        elif path == "/start-task":
            writer.write(answer(b'{"status":"success","data":{"taskId":"t1","creditsToDeduct":10}}'))
        elif len(seen) == 3:
            writer.write(answer(b'{"status":"success","data":{"status":"PROCESSING"}}'))
        else:
            writer.write(
                answer(
                    b'{"status":"success","data":{"status":"PROCESSED","deductedCredits":10,'
                    b'"files":[{"downloadLink":"https://files.example/1.jpg"}]}}'
                )
            )

    async with serving(handler) as url:
        provider = build("upscayl", api_key="key", base_url=url)
        quick = type(provider).rhythm.__class__(first=0.0, interval=0.0, cap=0.0)
        monkeypatch.setattr(type(provider), "rhythm", quick)
        path = small_picture(tmp_path).path
        assert path is not None
        async with Submitter(provider) as submitter:
            report = await submitter.upscale(path, {"scale": 2})
    assert seen == ["/start-task", "/start-task", "/get-task-status", "/get-task-status"]
    assert (report.state, report.remote_id) == (State.SUCCEEDED, "t1")
    assert report.images[0].url == "https://files.example/1.jpg"
    assert report.cost == Cost(Decimal(10), "credits")


Poll = Callable[[int], bytes]
DONE = b'{"data":{"task_id":"fp-1","status":"COMPLETED","generated":["https://files.example/1.png"]}}'
EMPTY = b'{"data":{"task_id":"fp-1","status":"COMPLETED","generated":[]}}'


async def upscaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poll: Poll) -> tuple[Report, int]:
    """The report of a task whose n-th status call (from 1) is answered with `poll(n)`, and the number of calls."""
    polls = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal polls
        head, _ = await read_request(reader)
        if head.startswith(b"POST"):
            writer.write(answer(b'{"data":{"task_id":"fp-1","status":"CREATED","generated":[]}}'))
        else:
            polls += 1
            writer.write(poll(polls))

    async with serving(handler) as url:
        provider = build("freepik", api_key="key", base_url=url)
        monkeypatch.setattr(type(provider), "rhythm", Rhythm(first=0.0, interval=0.0, cap=0.0))
        path = small_picture(tmp_path).path
        assert path is not None
        async with Submitter(provider) as submitter:
            return await submitter.upscale(path, {"scale_factor": "2x"}), polls


ODD_ANSWERS = {
    "not yet visible": answer(b'{"message":"Task not found"}', "404 Not Found"),
    "a challenge page": answer(b"<!DOCTYPE html><title>Just a moment...</title>", "403 Forbidden"),
    "a key that is refused once": answer(b'{"message":"x"}', "401 Unauthorized"),
    "a gateway's 400": answer(b"<html>400 Bad Request</html>", "400 Bad Request"),
    "busy": answer(b"<html>slow</html>", "429 Too Many Requests"),
    "a gateway's timeout": answer(b"<html>524</html>", "524 Timeout"),
    "a page": answer(b"<html></html>"),
    "done, nothing listed": answer(EMPTY),
}


@pytest.mark.parametrize("first", ODD_ANSWERS.values(), ids=ODD_ANSWERS.keys())
async def test_a_paid_task_is_not_thrown_away_over_one_odd_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    report, polls = await upscaled(tmp_path, monkeypatch, lambda n: first if n == 1 else answer(DONE))
    assert (report.state, len(report.images), polls) == (State.SUCCEEDED, 1, 2)


async def test_an_error_that_stays_names_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for odd in (ODD_ANSWERS["not yet visible"], ODD_ANSWERS["a page"]):
        with pytest.raises(ProviderError, match="task fp-1: ") as caught:
            await upscaled(tmp_path, monkeypatch, lambda n, odd=odd: odd)  # type: ignore[misc]
        assert caught.value.remote_id == "fp-1"


async def test_done_without_an_image_is_believed_after_a_few_polls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, polls = await upscaled(tmp_path, monkeypatch, lambda n: answer(EMPTY))
    assert (report.state, report.remote_id, polls) == (State.FAILED, "fp-1", EMPTY_POLLS)


async def test_a_script_never_sends_again_after_a_lost_answer(tmp_path: Path) -> None:
    calls = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        await read_request(reader)
        calls += 1
        reset(writer)

    async with serving(handler) as url, Submitter(build("pixelcut", api_key="key", base_url=url)) as submitter:
        path = small_picture(tmp_path).path
        assert path is not None
        with pytest.raises(AnswerLost):
            await submitter.upscale(path)
    assert calls == 1


async def test_a_script_gives_up_on_a_busy_provider_after_its_tries(tmp_path: Path) -> None:
    calls = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        await read_request(reader)
        calls += 1
        writer.write(answer(b"{}", "503 Service Unavailable", "Retry-After: 0\r\n"))

    async with serving(handler) as url, Submitter(build("pixelcut", api_key="key", base_url=url), tries=3) as submitter:
        path = small_picture(tmp_path).path
        assert path is not None
        with pytest.raises(ProviderBusy):
            await submitter.upscale(path)
    assert calls == 3
