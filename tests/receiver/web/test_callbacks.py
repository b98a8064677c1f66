"""Answers to callbacks: over real sockets where the sender matters."""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from receiver.runtime.group_commit import GroupCommit, Overloaded
from receiver.web.callback_bodies import CallbackBodies
from submitter.vocabulary import State
from tests.support.rows import execute, fetch
from tests.support.running_receiver import at_the_wire, freepik_body, novita_body, running_receiver, signed
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("way")


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:]) if name}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))


def request(path: str, body: bytes, **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


async def test_too_large_is_drained_and_the_connection_lives_on(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, max_callback_bytes=10_000) as here, at_the_wire(here.receiver) as port:
        job = await here.job("novita")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(here.path(job), b"x" * 3_000_000))
        status, headers, _ = await answer_of(reader)
        assert status == 413
        assert "close" not in headers.get("connection", "")
        writer.write(request(here.path(job), novita_body(job.remote_id or "", "IN_PROGRESS")))
        assert (await answer_of(reader))[0] == 200
        writer.write(request(here.path(job), b"x" * 10_000))
        assert (await answer_of(reader))[0] == 200, "the limit itself is allowed"
        writer.close()
        await here.read()
        assert len(await here.evidence(job)) == 2, "what is too large is not kept"


async def test_a_chunked_body_is_measured_as_it_comes(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, max_callback_bytes=1000) as here, at_the_wire(here.receiver) as port:
        job = await here.job("novita")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {here.path(job)} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(5):
            writer.write(b"fa\r\n" + b"y" * 250 + b"\r\n")
        writer.write(b"0\r\n\r\n")
        assert (await answer_of(reader))[0] == 413
        writer.close()


async def test_the_order_is_token_then_size_then_signature(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, max_callback_bytes=1000) as here:
        job = await here.job()
        large = b"x" * 2000
        assert (await here.client.post(here.path(job)[:-1], content=large)).status_code == 404
        assert (await here.client.post(here.path(job), content=large)).status_code == 413
        assert (await here.client.post(here.path(job), content=b"x")).status_code == 401


async def test_a_body_that_arrives_too_slowly_is_given_up(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver) as port:
        here.receiver.callbacks.bodies = CallbackBodies(seconds=0.3)
        job = await here.job("novita")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = novita_body(job.remote_id or "", "COMPLETED")
        writer.write(request(here.path(job), body)[:-1])
        status, headers, _ = await answer_of(reader)
        assert (status, headers["connection"]) == (408, "close")
        assert await reader.read() == b""
        writer.close()
        assert await here.evidence(job) == []


async def test_a_sender_that_hangs_up_leaves_nothing(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver) as port:
        job = await here.job("novita")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(here.path(job), b"x" * 100)[:-50])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await here.write_events(job, "IN_PROGRESS")
        await here.read()
        assert len(await here.evidence(job)) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_get_of_the_url_is_fine_and_records_nothing(method: str, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        answer = await here.client.request(method, here.path(job))
        assert answer.status_code == 200
        assert await here.evidence(job) == []
        assert (await here.client.request(method, here.path(job)[:-2])).status_code == 404


async def test_other_methods_are_not_for_this_path(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        assert (await here.client.put(here.path(job), content=b"{}")).status_code == 405


@pytest.mark.parametrize("content_type", [None, "text/html", "multipart/form-data; boundary=x", "nonsense/\xff"])
async def test_content_types_are_not_asked_for(content_type: str | None, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        body = freepik_body(job.remote_id or "", "COMPLETED")
        headers = signed(body) if content_type is None else {**signed(body), "content-type": content_type}
        answer = await here.client.post(
            here.path(job), content=body, headers=[(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
        )
        assert answer.status_code == 200
        await here.becomes(job, State.SUCCEEDED)


async def test_a_compressed_body_is_kept_as_it_came_and_never_unpacked(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        here.upstream.says[job.remote_id or ""] = "COMPLETED"
        bomb = gzip.compress(b"0" * 50_000_000)
        answer = await here.post(job, bomb, {"content-encoding": "gzip", "content-type": "application/json"})
        assert answer.status_code == 200
        await here.read()
        (kept,) = await here.evidence(job)
        assert (kept.body, kept.verdict) == (bomb, "unreadable")
        assert (await here.now(job)).state is State.RUNNING


@pytest.mark.sqlite(reason="another program holds the file's lock")
async def test_a_locked_database_is_our_own_fault_response(tmp_path: Path) -> None:
    """Another process holds the write lock for longer than a provider waits."""
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        other = sqlite3.connect(here.receiver.settings.database_path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        answer = await here.write_events(job, "COMPLETED")
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        other.execute("ROLLBACK")
        other.close()
        assert (await here.write_events(job, "COMPLETED")).status_code == 200
        await here.becomes(job, State.SUCCEEDED)


@pytest.mark.sqlite(reason="bounds the pages of the file")
async def test_a_full_disk_is_our_own_fault_response(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()

        ((pages,),) = await fetch(here.receiver.parts.database, "PRAGMA page_count")
        await execute(here.receiver.parts.database, f"PRAGMA max_page_count = {pages}")
        body = freepik_body(job.remote_id or "", "COMPLETED") + b" " * 200_000
        answer = await here.post(job, body, signed(body))
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        await execute(here.receiver.parts.database, "PRAGMA max_page_count = 1000000")
        assert (await here.post(job, body, signed(body))).status_code == 200
        await here.becomes(job, State.SUCCEEDED)


async def test_a_full_queue_is_refused_at_once() -> None:
    gate, begun = asyncio.Event(), asyncio.Event()
    committed: list[list[int]] = []

    async def commit(items: Sequence[int]) -> None:
        begun.set()
        await gate.wait()
        committed.append(list(items))

    group: GroupCommit[int] = GroupCommit(commit, batch=2, limit=3, patience_seconds=60)
    waiting = [asyncio.create_task(group.add(n)) for n in range(2)]
    await begun.wait()
    waiting += [asyncio.create_task(group.add(n)) for n in range(2, 5)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await group.add(5)
    gate.set()
    await asyncio.gather(*waiting)
    assert committed == [[0, 1], [2, 3], [4]]


async def test_what_waits_is_bounded_by_its_weight_too() -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    async def commit(items: Sequence[bytes]) -> None:
        begun.set()
        await gate.wait()

    group: GroupCommit[bytes] = GroupCommit(commit, patience_seconds=60, weigh=len, weight_limit=100)
    waiting = [asyncio.create_task(group.add(b"x" * 150))]
    await begun.wait()
    with pytest.raises(Overloaded):
        await group.add(b"x")
    gate.set()
    await asyncio.gather(*waiting)
    waiting = [asyncio.create_task(group.add(b"x" * 50)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await group.add(b"x")
    await asyncio.gather(*waiting)
    await group.add(b"x")


async def test_where_callers_are_bounded_themselves_any_number_waits_for_its_commit() -> None:
    committed: list[int] = []

    async def commit(items: Sequence[int]) -> None:
        committed.extend(items)

    group: GroupCommit[int] = GroupCommit(commit, limit=None, patience_seconds=None)
    await asyncio.gather(*(group.add(n) for n in range(10_000)))
    assert committed == list(range(10_000))


async def test_a_commit_that_fails_fails_for_its_batch_alone() -> None:
    async def commit(items: Sequence[int]) -> None:
        if 1 in items:
            raise OSError("disk full")

    group: GroupCommit[int] = GroupCommit(commit, batch=2)
    came = await asyncio.gather(*(group.add(n) for n in range(4)), return_exceptions=True)
    assert [type(result) for result in came] == [OSError, OSError, type(None), type(None)]


async def test_nobody_waits_for_ever_for_a_commit_that_hangs() -> None:
    gate = asyncio.Event()

    async def commit(items: Sequence[int]) -> None:
        await gate.wait()

    group: GroupCommit[int] = GroupCommit(commit, batch=1, patience_seconds=0.05)
    came = await asyncio.gather(*(group.add(n) for n in range(3)), return_exceptions=True)
    assert [type(result) for result in came] == [Overloaded] * 3
    gate.set()
    await group.drain()


@pytest.mark.parametrize(
    ("trusted", "forwarded", "peer"),
    [
        (("127.0.0.1",), "203.0.113.7", "203.0.113.7"),
        (("127.0.0.1",), "198.51.100.1, 203.0.113.7", "203.0.113.7"),
        (("127.0.0.0/8",), "203.0.113.7, 127.0.0.9", "203.0.113.7"),
        (("192.0.2.1",), "203.0.113.7", "127.0.0.1"),
        ((), "203.0.113.7", "127.0.0.1"),
    ],
)
async def test_the_peer_is_believed_from_trusted_proxies_only(
    trusted: tuple[str, ...], forwarded: str, peer: str, tmp_path: Path
) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver, trusted=trusted) as port:
        job = await here.job("novita")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(here.path(job), b"{}", x_forwarded_for=forwarded))
        assert (await answer_of(reader))[0] == 200
        writer.close()
        (kept,) = await here.evidence(job)
        assert kept.peer == peer


async def test_what_comes_is_kept_byte_by_byte(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver) as port:
        job = await here.job("novita")
        body = bytes(range(256)) * 3
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = request(here.path(job), body, X_Twice="one").replace(
            b"\r\n\r\n", b"\r\nx-twice: two\r\nx-latin: \xe9\xff\r\nx-name: \xd1\x84\r\n\r\n", 1
        )
        writer.write(head)
        assert (await answer_of(reader))[0] == 200
        writer.close()
        (kept,) = await here.evidence(job)
        assert kept.body == body
        assert [value for name, value in kept.headers if name == "x-twice"] == ["one", "two"]
        assert ("x-latin", "\xe9\xff") in kept.headers
        shown = (await here.client.get(f"/v1/jobs/{job.id}/evidence")).json()["items"][0]
        assert shown["body"] is None
        assert shown["body_base64"].startswith("AAECAwQF")
        assert ["x-latin", "\xe9\xff"] in shown["headers"]
        assert ["x-name", "ф"] in shown["headers"]


async def test_a_callback_is_answered_while_the_reader_is_stuck(tmp_path: Path) -> None:
    """The 200 waits for the commit and for nothing else."""
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        async with here.receiver.parts.intake.reading:
            assert (await here.write_events(job, "COMPLETED")).status_code == 200
            (kept,) = await here.evidence(job)
            assert (kept.verdict, kept.read_at) == ("received", None)
        await here.becomes(job, State.SUCCEEDED)


async def test_evidence_that_was_never_read_is_read_at_the_next_start(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        async with here.receiver.parts.intake.reading:
            await here.write_events(job, "COMPLETED")
            assert await here.verdicts(job) == ["received"]
    async with running_receiver(tmp_path) as here:
        done = await here.becomes(job, State.SUCCEEDED)
        assert done.settled_by == "callback"
        assert await here.verdicts(job) == ["believed"]
        assert json.dumps(await here.events(job)) == '["job.succeeded"]'


async def test_one_urls_unfinished_bodies_take_neither_all_memory_nor_the_place_of_others(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, max_callback_bytes=100_000) as here, at_the_wire(here.receiver) as port:
        flooded, other = await here.job("novita"), await here.job("novita")
        half = request(here.path(flooded), b"x" * 100_000)[:-50_000]
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for _, writer in opened:
            writer.write(half)
            await writer.drain()
        answers = [asyncio.create_task(answer_of(reader)) for reader, _ in opened]
        await eventually(lambda: sum(answer.done() for answer in answers) >= 10)
        refused = [answer.result() for answer in answers if answer.done()]
        for answer in answers:
            answer.cancel()
        assert {status for status, _, _ in refused} == {429}
        assert all(int(headers["retry-after"]) > 0 for _, headers, _ in refused)
        assert len(refused) < 20
        body = novita_body(other.remote_id or "", "IN_PROGRESS")
        assert (await here.post(other, body)).status_code == 200
        for _, writer in opened:
            writer.close()

        async def there_is_room_again() -> bool:
            return (await here.post(flooded, b"x" * 90_000)).status_code == 200

        await eventually(there_is_room_again)
