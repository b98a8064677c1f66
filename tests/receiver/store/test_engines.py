"""The guarantees of every engine below the storage interface: transactions, lists, locks of rows, versions."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from receiver.store.engines.sqlite import SqliteDatabase
from receiver.store.errors import Conflict, DatabaseUnavailable, Overtaken
from receiver.store.statements import (
    Fetch,
    FetchWide,
    Hold,
    InsertMany,
    Positions,
    Run,
    RunMany,
    UpdateMany,
    Work,
    alone,
    first,
)
from tests.support.waiting import patience

COLUMNS = ("token_id", "key", "digest", "job_id", "created_at")
EVIDENCE = ("job_id", "provider", "source", "verdict", "received_at", "headers", "body")


def keys(*names: str, digest: str = "d") -> list[tuple[Any, ...]]:
    return [("t", name, digest, "job_1", 1) for name in names]


async def found(database: Any) -> list[str]:
    rows = await database.read(alone(Fetch("SELECT key, digest FROM idempotency ORDER BY key")))
    return [row[0] for row in rows]


async def test_a_transaction_returns_what_its_generator_returns(database: Any) -> None:
    def work() -> Work[int]:
        yield InsertMany("idempotency", COLUMNS, keys("a", "b", "c"))
        rows = yield Fetch("SELECT key FROM idempotency WHERE key IN (??) AND created_at = ?", (["a", "c"], 1))
        changed = yield Run("DELETE FROM idempotency WHERE key = ? OR key IN (??)", ("b", ["x"]))
        row = yield from first("SELECT count(*) FROM idempotency")
        return len(rows) * 100 + int(changed) * 10 + int(row[0])

    assert await database.write(work) == 212
    assert await found(database) == ["a", "c"]


async def test_an_error_inside_a_transaction_writes_nothing(database: Any) -> None:
    def work() -> Work[None]:
        yield InsertMany("idempotency", COLUMNS, keys("a"))
        raise Overtaken

    with pytest.raises(Overtaken):
        await database.write(work)
    assert await found(database) == []
    await database.write(alone(InsertMany("idempotency", COLUMNS, keys("b"))))
    assert await found(database) == ["b"]


async def test_a_unique_key_that_is_taken_is_a_conflict_and_a_known_one_is_left_as_it_is(
    database: Any,
) -> None:
    await database.append("idempotency", COLUMNS, keys("a", digest="first"))
    with pytest.raises(Conflict):
        await database.append("idempotency", COLUMNS, keys("b", "a"))
    assert await found(database) == ["a"]
    await database.write(
        alone(InsertMany("idempotency", COLUMNS, keys("a", "b", digest="second"), known=("token_id", "key")))
    )
    rows = await database.read(alone(Fetch("SELECT key, digest FROM idempotency ORDER BY key")))
    assert [tuple(row) for row in rows] == [("a", "first"), ("b", "second")]


@pytest.mark.parametrize("count", [1, 64, 65, 1000])
async def test_appended_rows_are_all_there_whatever_their_number(database: Any, count: int) -> None:
    await database.append("idempotency", COLUMNS, keys(*(f"{n:04}" for n in range(count))))
    assert len(await found(database)) == count


@pytest.mark.parametrize("size", [0, 10, 6 * 1024 * 1024])
async def test_wide_rows_come_back_as_they_were_written(database: Any, size: int) -> None:
    row = ("job_ä", "freepik", "callback", "received", 5, '[["a", "\\u0000\u2028"]]', bytes(range(256)) + b"x" * size)
    await database.append("evidence", EVIDENCE, [row, row])
    rest = "FROM evidence WHERE read_at IS NULL ORDER BY id LIMIT ?"
    rows = await database.read(alone(FetchWide(("id", *EVIDENCE, "status"), rest, (2,), blobs=frozenset({"body"}))))
    assert sorted(tuple(row) for row in rows) == [(1, *row, None), (2, *row, None)]


async def test_bytes_of_wide_rows_are_each_rows_own(database: Any) -> None:
    bodies = [b"", b"\0", b"\0\0a", "ä".encode()[:1], b"\xff\xfe", b"", b"\xef\xbb\xbf'\"", bytes(range(256)) * 3, b""]
    rows = [("job", "freepik", "callback", "received", n, "[]", body) for n, body in enumerate(bodies)]
    await database.append("evidence", EVIDENCE, rows)
    wide = FetchWide(("body", "received_at"), "FROM evidence WHERE read_at IS NULL", blobs=frozenset({"body"}))
    assert {row[1]: bytes(row[0]) for row in await database.read(alone(wide))} == dict(enumerate(bodies))


async def test_rows_are_updated_only_in_the_version_that_was_read(database: Any) -> None:
    columns = (
        *("id", "provider", "state", "version", "options", "metadata", "awaits_callback", "input_name", "tries"),
        *("polls", "created_at"),
    )
    jobs = [(f"job_{n:03}", "p", "queued", 1, "{}", "{}", 0, "", 0, 0, 1) for n in range(100)]
    await database.append("jobs", columns, jobs)

    def work(rows: list[tuple[Any, ...]]) -> Work[int]:
        changed: int = yield UpdateMany("jobs", ("state", "cost_amount"), rows)
        if changed != len(rows):
            raise Overtaken
        return changed

    assert await database.write(lambda: work([(job[0], 1, "running", None) for job in jobs])) == 100
    with pytest.raises(Overtaken):
        await database.write(lambda: work([("job_000", 2, "failed", "1"), ("job_001", 1, "failed", "1")]))
    rows = await database.read(alone(Fetch("SELECT state, version, count(*) FROM jobs GROUP BY state, version")))
    assert [tuple(row) for row in rows] == [("running", 2, 100)]


async def test_a_snapshot_does_not_move_while_others_write(database: Any) -> None:
    began, written = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> Work[set[int]]:
        counts = set()
        while not written.is_set():
            row = yield from first("SELECT count(*) FROM idempotency")
            counts.add(row[0])
            loop.call_soon_threadsafe(began.set)
        row = yield from first("SELECT count(*) FROM idempotency")
        return counts | {row[0]}

    reading = asyncio.create_task(database.read(work))
    async with patience():
        await began.wait()
        await database.append("idempotency", COLUMNS, keys("a"))
        written.set()
        assert await reading == {0}
    assert await found(database) == ["a"]


async def test_locks_and_positions_are_values_like_any_other_statement(database: Any) -> None:
    def work() -> Work[list[int]]:
        yield Hold("subscriptions", shared=True)
        yield RunMany("DELETE FROM idempotency WHERE key = ?", [("a",), ("b",)])
        positions: list[int] = yield Positions(3)
        return positions

    assert await database.write(work) in ([1, 2, 3], [None] * 3)


async def test_a_locked_file_is_unavailable_and_a_mistake_in_our_sql_is_not(database: Any) -> None:
    with pytest.raises(Exception, match="nothing_like_it") as raised:
        await database.read(alone(Fetch("SELECT 1 FROM nothing_like_it")))
    assert not isinstance(raised.value, Conflict)
    await database.close()
    with pytest.raises(RuntimeError, match="closed"):
        await database.check_writable()


@pytest.mark.sqlite(reason="a damaged page")
async def test_a_file_that_becomes_unreadable_is_unavailable(tmp_path: Path) -> None:
    database = await SqliteDatabase.open(tmp_path / "receiver.db")
    await database.append("idempotency", COLUMNS, [("t", "a", "key_to_find", "job_1", 1)])
    await database.close()
    path = tmp_path / "receiver.db"
    whole = bytearray(path.read_bytes())
    page = whole.index(b"key_to_find") // 4096 * 4096
    whole[page : page + 4096] = b"\xff" * 4096
    path.write_bytes(whole)
    database = await SqliteDatabase.open(path)
    with pytest.raises(DatabaseUnavailable):
        await found(database)
    await database.close()


@pytest.mark.sqlite(reason="its driver has threads")
async def test_closing_leaves_no_thread_behind_even_of_a_query_that_was_cancelled(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    database = await SqliteDatabase.open(tmp_path / "receiver.db")
    began = threading.Event()

    def work() -> Work[Any]:
        yield Fetch("SELECT 1")
        began.set()
        return (
            yield Fetch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e9) SELECT count(*) FROM n"
            )
        )

    reading = asyncio.create_task(database.read(work))
    assert await asyncio.to_thread(began.wait, 20)
    for _ in range(3):
        reading.cancel()
        await asyncio.sleep(0.01)
    await asyncio.wait([reading])
    await database.close()
    left = set(threading.enumerate()) - before
    assert not [thread.name for thread in left if thread.name.startswith("sqlite")]


async def test_a_reader_that_is_being_opened_is_closed_with_the_rest(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    for gives_up in (False, True):
        database = await SqliteDatabase.open(tmp_path / f"{gives_up}.db")
        reading = [asyncio.create_task(database.read(alone(Fetch("SELECT 1")))) for _ in range(3)]
        await asyncio.sleep(0)  # the readers are being opened now
        if gives_up:
            reading[0].cancel()
        await database.close()
        await asyncio.gather(*reading, return_exceptions=True)
        mine = [thread for thread in set(threading.enumerate()) - before if "aiosqlite" in repr(thread).lower()]
        assert [thread for thread in mine if thread.is_alive()] == []


async def test_a_reader_that_nobody_waited_for_serves_the_next(tmp_path: Path) -> None:
    database = await SqliteDatabase.open(tmp_path / "a.db", readers=1)
    reading = asyncio.create_task(database.read(alone(Fetch("SELECT 1"))))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert await database.read(alone(Fetch("SELECT 2"))) == [(2,)]
    await database.close()
