"""The event stream and the pages of events, over a real database and, where sockets matter, a real server."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from receiver.domain.events import ALL, Event, EventFilter
from receiver.downstream.stream import Stream
from receiver.store.database import Database, open_database
from receiver.store.events import Events
from receiver.web.auth import Bearer
from receiver.web.events import EventsApi
from receiver.web.problems import Problem, answer_problem
from submitter import tls
from submitter.sandbox import test_picture as picture_bytes
from tests.support.engines import database_of
from tests.support.processes import live, submit, wait_for_state
from tests.support.serving import serving
from tests.support.streams import Frame, read_frames, record_events
from tests.support.waiting import PATIENCE_SECONDS, eventually, patience

TOKEN = "a-token-for-tests"


class Served:
    """The events API alone, on a real port."""

    def __init__(self, database: Database, *, heartbeat_seconds: float = 15.0) -> None:
        self.database = database
        self.stopping = asyncio.Event()
        self.stream = Stream(Events(database), self.stopping, heartbeat_seconds=heartbeat_seconds)
        api = EventsApi(Events(database), self.stream, ("freepik", "novita"))
        self.app = Starlette(routes=api.routes(Bearer([TOKEN])), exception_handlers={Problem: answer_problem})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[httpx.AsyncClient]:
        following = asyncio.create_task(self.stream.loop.run())
        headers = {"authorization": f"Bearer {TOKEN}"}
        try:
            async with (
                serving(self.app) as origin,
                httpx.AsyncClient(
                    base_url=origin, headers=headers, trust_env=False, verify=tls.context(), timeout=PATIENCE_SECONDS
                ) as client,
            ):
                try:
                    yield client
                finally:
                    self.stopping.set()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def record_events(self, *names: str, **more: Any) -> None:
        await record_events(self.database, names, **more)
        self.stream.loop.wake()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    database = await open_database(database_of(tmp_path))
    yield Served(database)
    await database.close()


def listen(
    client: httpx.AsyncClient, after: int | None = None, **params: str
) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
    headers = {"accept": "text/event-stream"} | ({} if after is None else {"last-event-id": str(after)})
    return client.stream("GET", "/v1/events", headers=headers, params=params, timeout=PATIENCE_SECONDS)


async def take(response: httpx.Response, count: int) -> list[Frame]:
    frames: list[Frame] = []
    async with patience(), contextlib.aclosing(read_frames(response)) as coming:
        async for frame in coming:
            frames.append(frame)
            if len(frames) == count:
                break
    return frames


async def test_a_client_that_names_no_position_sees_what_happens_from_then_on(served: Served) -> None:
    async with served.running() as client:
        await served.record_events("job.queued")
        async with listen(client) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["last-event-id"] == "1"
            await served.record_events("job.running", "job.succeeded", job_id="job_1", provider="freepik")
            frames = await take(response, 2)
    assert [(frame.position, frame.type) for frame in frames] == [(2, "job.running"), (3, "job.succeeded")]
    assert set(frames[0].body) == {"type", "timestamp", "data"}
    assert frames[0].webhook_id.startswith("evt_")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/event-stream", "text/event-stream"),
        ("Text/Event-Stream; q=0.5, */*;q=0.1", "text/event-stream"),
        ("application/json;q=0.5, text/event-stream", "text/event-stream"),
        ("text/event-stream;q=0", "application/json"),
        ("text/event-stream;q=0.5, application/json", "application/json"),
        ("text/event-stream;q=many", "application/json"),
        ("*/*", "application/json"),
        ("", "application/json"),
    ],
)
async def test_a_stream_is_for_those_who_want_it_most(served: Served, accept: str, kind: str) -> None:
    async with served.running() as client, client.stream("GET", "/v1/events", headers={"accept": accept}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == kind


@pytest.mark.parametrize("how", ["header", "query"])
async def test_a_client_resumes_above_the_position_that_it_names(served: Served, how: str) -> None:
    async with served.running() as client:
        await served.record_events(*["job.queued"] * 5)
        at = {"after": 3} if how == "header" else {"last_event_id": "3"}
        async with listen(client, **at) as response:
            assert [frame.position for frame in await take(response, 2)] == [4, 5]


@pytest.mark.parametrize("how", ["stream by header", "stream by query", "page by after", "page by cursor"])
async def test_a_position_ahead_of_the_log_is_a_conflict_that_names_the_newest(served: Served, how: str) -> None:
    async with served.running() as client:
        await served.record_events(*["job.queued"] * 3)
        headers = {"accept": "text/event-stream"} if how.startswith("stream") else {}
        if how.endswith("header"):
            headers["last-event-id"] = "4"
        params = {"query": {"last_event_id": "4"}, "after": {"after": "4"}, "cursor": {"cursor": "4"}}
        answer = await client.get("/v1/events", headers=headers, params=params.get(how.split()[-1], {}))
        assert (answer.status_code, answer.json()["code"], answer.json()["newest"]) == (409, "position_ahead", 3)
        assert "3" in answer.json()["remedy"]
        async with listen(client, answer.json()["newest"]) as response:
            await served.record_events("job.running")
            assert [frame.position for frame in await take(response, 1)] == [4]


async def test_the_stream_and_the_pages_filter_alike(served: Served) -> None:
    async with served.running() as client:
        await served.record_events("job.queued", "job.running", job_id="job_1", provider="freepik")
        await served.record_events("job.queued", "job.running", job_id="job_2", provider="novita")
        for params, wanted in (
            ({"type": "job.running"}, [2, 4]),
            ({"provider": "novita"}, [3, 4]),
            ({"job": "job_1"}, [1, 2]),
            ({"type": "job.queued,job.running", "provider": "freepik"}, [1, 2]),
        ):
            page = (await client.get("/v1/events", params=params)).json()
            assert [item["position"] for item in page["items"]] == wanted
            async with listen(client, 0, **params) as response:
                assert [frame.position for frame in await take(response, len(wanted))] == wanted


async def test_pages_lead_through_all_events_once_and_in_order(served: Served) -> None:
    async with served.running() as client:
        await served.record_events(*["job.queued"] * 7)
        seen, cursor = [], "0"
        while cursor is not None:
            page = (await client.get("/v1/events", params={"cursor": cursor, "limit": "3"})).json()
            seen += page["items"]
            cursor = page["next"]
    assert [item["position"] for item in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert set(seen[0]) == {"position", "id", "type", "job_id", "provider", "created_at", "timestamp", "data"}


@pytest.mark.parametrize("params", [{"type": "job.exploded"}, {"after": "x"}, {"limit": "0"}, {"provider": "nobody"}])
async def test_a_filter_that_can_not_be_is_refused_in_words(served: Served, params: dict[str, str]) -> None:
    async with served.running() as client:
        for accept in ("application/json", "text/event-stream"):
            if accept == "text/event-stream" and "limit" in params:
                continue
            answer = await client.get("/v1/events", params=params, headers={"accept": accept})
            assert answer.status_code == 422
            assert answer.json()["field"] in params


async def test_silence_is_filled_with_heartbeats(tmp_path: Path) -> None:
    database = await open_database(database_of(tmp_path))
    async with Served(database, heartbeat_seconds=0.05).running() as client, listen(client) as response:
        lines = response.aiter_lines()
        async with patience():
            assert [line async for line in _until(lines, ": heartbeat")]
        await response.aclose()
    await database.close()


async def _until(lines: AsyncIterator[str], wanted: str) -> AsyncIterator[str]:
    async for line in lines:
        if line == wanted:
            yield line
            return


async def test_open_streams_end_at_once_when_the_receiver_stops(served: Served) -> None:
    async with served.running() as client, listen(client) as response:
        frames = read_frames(response)
        await served.record_events("job.queued")
        assert (await anext(frames)).position == 1
        served.stopping.set()
        served.stream.loop.wake()
        async with patience():
            assert [frame async for frame in frames] == []


async def test_a_client_that_went_away_is_forgotten(served: Served) -> None:
    async with served.running() as client:
        async with listen(client) as response:
            await served.record_events("job.queued")
            await take(response, 1)
            assert served.stream.clients == 1
        await eventually(lambda: served.stream.clients == 0)


async def test_a_client_that_does_not_read_holds_one_batch_and_no_more(served: Served) -> None:
    """The generator is pulled by the socket: what is not pulled is not read from the database either."""
    for _ in range(20):
        await record_events(served.database, ["job.queued"] * 100, data={"pad": "x" * 1000})
    frames = served.stream.frames(0, ALL)
    opening = await anext(frames)
    batch = await anext(frames)
    assert opening.startswith(b":")
    assert batch.count(b"event: job.queued") == 100
    await frames.aclose()
    assert served.stream.clients == 0


async def test_clients_with_filters_of_their_own_see_what_they_asked_for_once_and_in_order(served: Served) -> None:
    types, total = ("job.queued", "job.running", "job.succeeded"), 900
    written = [types[n % 3] for n in range(total)]
    choices = [ALL, *(EventFilter(types=frozenset({name})) for name in types), EventFilter(job_id="job_other")]
    seen: list[list[int]] = [[] for _ in range(60)]

    async def follow(number: int) -> None:
        wanted = [n + 1 for n, name in enumerate(written) if choices[number % 5].takes(_event(name))]
        async with contextlib.aclosing(served.stream.frames(0, choices[number % 5])) as frames:
            while len(seen[number]) < len(wanted):
                seen[number] += [int(found) for found in re.findall(rb"^id: (\d+)$", await anext(frames), re.M)]
                await asyncio.sleep(0.001 * (number % 7))
        assert seen[number] == wanted

    async with served.running(), patience():
        following = [asyncio.create_task(follow(number)) for number in range(60)]
        for start in range(0, total, 9):
            await served.record_events(*written[start : start + 9], job_id="job_1")
        await asyncio.gather(*following)


def _event(name: str) -> Event:
    return Event(1, "evt_1", name, "job_1", None, datetime.now(UTC), "{}")


async def test_a_client_that_does_not_read_holds_up_no_other_and_loses_nothing(served: Served) -> None:
    async with served.running(), patience():
        idle, busy = served.stream.frames(0, ALL), served.stream.frames(0, ALL)
        await anext(idle)
        await anext(busy)
        waiting = asyncio.create_task(anext(idle))  # is handed the first event, and not pulled again
        for n in range(1, 801):
            await served.record_events("job.queued")
            assert f"id: {n}\n".encode() in await anext(busy)
        late = await waiting
        while b"id: 800\n" not in late:
            late += await anext(idle)
        assert [int(found) for found in re.findall(rb"^id: (\d+)$", late, re.M)] == list(range(1, 801))
        await idle.aclose()
        await busy.aclose()


async def test_a_stop_ends_hundreds_of_waiting_clients_at_once(served: Served) -> None:
    async def follow() -> bytes:
        return b"".join([text async for text in served.stream.frames(0, ALL)])

    async with served.running(), patience():
        following = [asyncio.create_task(follow()) for _ in range(300)]
        await eventually(lambda: served.stream.clients == 300)
        await served.record_events("job.queued")
        served.stopping.set()
        served.stream.loop.wake()
        assert all(text.count(b"event: ") <= 1 for text in await asyncio.gather(*following))


async def test_text_that_some_readers_take_for_a_line_break_stays_inside_its_event(served: Served) -> None:
    strange = "a\u2028b\u2029c\x85d\ne\rf\x1dg\ud800h"
    async with served.running() as client:
        await record_events(served.database, ["job.queued"], data={"text": strange})
        async with listen(client, 0) as response:
            (frame,) = await take(response, 1)
    assert frame.body["data"]["text"] == strange


async def test_a_client_cut_off_fifty_times_under_load_sees_every_event_once_in_order(served: Served) -> None:
    total, seen, cuts = 3000, list[int](), 0
    async with served.running() as client:

        async def load() -> None:
            for _ in range(total // 10):
                await served.record_events(*["job.running"] * 10)
                await asyncio.sleep(0)

        loading = asyncio.create_task(load())
        while len(seen) < total:
            async with listen(client, seen[-1] if seen else 0) as response:
                last_round = cuts >= 50
                async with contextlib.aclosing(read_frames(response)) as coming:
                    async for frame in coming:
                        seen.append(frame.position)
                        if len(seen) == total or (not last_round and len(seen) >= total * (cuts + 1) // 52):
                            break
            cuts += 1
        await loading
    assert cuts > 50
    assert seen == list(range(1, total + 1))


async def test_the_story_of_a_job_comes_over_the_stream_of_a_real_receiver(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        async with client.stream("GET", "/v1/events", headers={"accept": "text/event-stream"}) as response:
            job = await submit(client, "freepik", picture_bytes(120, 90))
            frames = await take(response, 4)
        await wait_for_state(client, job["id"], "succeeded", kept=True)
        assert [frame.type for frame in frames] == ["job.queued", "job.running", "job.succeeded", "job.images_kept"]
        assert all(frame.body["data"]["id"] == job["id"] for frame in frames)
