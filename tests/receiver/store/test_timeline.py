"""`receiver jobs …`: one timeline for one job, from the database of a receiver that runs."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from receiver.store.timeline import explain
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from tests.support.cli import Done, receiver_command
from tests.support.engines import secrets_of
from tests.support.processes import TOKEN, LiveReceiver, live, submit, wait_for_state
from tests.support.rows import execute
from tests.support.running_receiver import running_receiver
from tests.support.waiting import eventually


async def jobs(receiver: LiveReceiver, *arguments: str) -> Done:
    return await receiver_command(
        "jobs", *arguments, environment=receiver.full_environment(), directory=receiver.data_dir.parent
    )


async def deaf_endpoint() -> tuple[asyncio.Server, str]:
    """An endpoint that answers 500 to everything."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"


async def test_the_timeline_of_a_finished_job_tells_everything_that_happened(tmp_path: Path) -> None:
    server, hook = await deaf_endpoint()
    environment = {"RECEIVER_RETRY_SCHEDULE": "0,600"}
    async with server, live(tmp_path, environment=environment) as (receiver, _), receiver.client() as client:
        job = await submit(client, "apixo", picture_bytes(160, 120), notify_url=hook)
        await wait_for_state(client, job["id"], "succeeded", kept=True)
        forged = await client.post(await _callback_url_of(receiver, client, job["id"]), content=b"not json")
        assert forged.status_code == 200
        shown: dict[str, Any] = {}

        async def reported() -> bool:
            shown.update((await jobs(receiver, "explain", job["id"], "--json")).json)
            delivered = any(line["what"] == "delivery" for line in shown["timeline"])
            return delivered and any(line.get("verdict") == "unreadable" for line in shown["timeline"])

        await eventually(reported, what=lambda: str(shown.get("timeline")))
        readable = await jobs(receiver, "explain", job["id"])
        assert TOKEN not in readable.out
        assert "/callbacks/" not in readable.out
    lines = shown["timeline"]
    whats = [line["what"] for line in lines]
    order = [whats.index(what) for what in ("queued", "submit", "answer", "callback", "poll", "succeeded", "image")]
    assert order == sorted(order), whats
    callback = next(line for line in lines if line["what"] == "callback")
    assert (callback["verdict"], callback["trust"], callback["peer"]) == ("hint", "capability_token", "127.0.0.1")
    poll = next(line for line in lines if line["what"] == "poll")
    assert poll["note"] == "to confirm a callback"
    assert {"job.queued", "job.running", "job.succeeded"} <= {line.get("type") for line in lines}
    failed = next(line for line in lines if line["what"] == "delivery")
    assert re.search(r"answered 500, after (\d+ ms|\d+\.\d\d s)$", failed["text"])
    (coming,) = shown["next"]
    assert (coming["what"], coming["tries"]) == ("delivery", 1)
    assert coming["at"] > failed["at"]
    for text in ("queued", "request sent", "unsigned callback", "ended as succeeded", "image 0 kept", "try 2"):
        assert text in readable.out


async def test_the_next_thing_of_a_running_job_is_its_callback_a_poll_or_its_end(tmp_path: Path) -> None:
    sandbox = Sandbox(seed=1, turnaround_seconds=(600, 600))
    environment = {"RECEIVER_POLL_INTERVAL": "300", "RECEIVER_CALLBACK_TIMEOUT": "300"}
    async with live(tmp_path, sandbox=sandbox, environment=environment) as (receiver, _), receiver.client() as client:
        job = await submit(client, "freepik", picture_bytes(160, 120))
        await wait_for_state(client, job["id"], "running")
        found = (await jobs(receiver, "explain", job["id"], "--json")).json
        assert [line["what"] for line in found["next"]] == ["callback", "poll", "expired"]
        assert found["next"][0]["at"] is None
        assert found["job"]["sent_at"] < found["next"][1]["at"] < found["next"][2]["at"]
        queued = await submit(client, "upscayl", picture_bytes(160, 120))
        await wait_for_state(client, queued["id"], "running")
        found = (await jobs(receiver, "explain", queued["id"], "--json")).json
        assert [line["what"] for line in found["next"]] == ["poll", "expired"]


async def test_a_paused_provider_and_its_next_probe_are_reported(tmp_path: Path) -> None:
    sandbox = Sandbox(seed=1, faults=Faults.model_validate({"bad_key": 1}))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        job = await submit(client, "freepik", picture_bytes(160, 120))

        async def paused() -> bool:
            items = (await client.get("/v1/providers")).json()["items"]
            return any(item["name"] == "freepik" and item["paused"] for item in items)

        await eventually(paused)
        found = (await jobs(receiver, "explain", job["id"], "--json")).json
        assert [line["what"] for line in found["next"]] == ["probe"]
        assert "freepik is paused" in found["next"][0]["text"]
        answered = (await client.get(f"/v1/jobs/{job['id']}")).json()["waiting_for"]
        assert answered["reason"] == "provider_paused"
        assert found["job"]["waiting_for"]["reason"] == "provider_paused"
        assert (await jobs(receiver, "show", job["id"], "--json")).json["waiting_for"]["reason"] == "provider_paused"
        assert "waiting_for the provider is paused, until 2" in (await jobs(receiver, "show", job["id"])).out


async def test_list_show_and_watch_print_what_the_api_says(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        first = await submit(client, "freepik", picture_bytes(160, 120))
        second = await submit(client, "pixelcut", picture_bytes(160, 120))
        watched = await jobs(receiver, "watch", first["id"], second["id"], "--every", "0.1")
        assert watched.status == 0
        assert "2 succeeded" in watched.out
        await wait_for_state(client, first["id"], kept=True)
        found = (await jobs(receiver, "list", "--json")).json["items"]
        assert [item["id"] for item in found] == [second["id"], first["id"]]
        assert [
            item["id"] for item in (await jobs(receiver, "list", "--provider", "freepik", "--json")).json["items"]
        ] == [first["id"]]
        unknown = await jobs(receiver, "list", "--provider", "nope")
        assert (unknown.status, unknown.out) == (2, "")
        assert (
            unknown.err
            == "receiver: there is no provider 'nope'; use one of freepik, apixo, novita, upscayl, pixelcut\n"
        )
        shown = (await jobs(receiver, "show", first["id"], "--json")).json
        answered = (await client.get(f"/v1/jobs/{first['id']}")).json()
        assert {**shown, "images": None} == {**answered, "images": None}
        explained = (await jobs(receiver, "explain", first["id"], "--json")).json["job"]
        assert explained == shown
        assert [image["kept"] for image in explained["images"]] == [True]
        assert first["id"] in (await jobs(receiver, "list")).out
        assert "freepik" in (await jobs(receiver, "show", first["id"])).out


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"state": "lost", "last_error": "answered 404", "tries": 3}, "image 0 lost: answered 404"),
        ({"state": "lost", "tries": 3}, "image 0 lost: its link is dead"),
        ({"state": "wanted", "tries": 0}, "image 0 is fetched"),
        (
            {"state": "wanted", "tries": 1, "last_error": "status 503"},
            "image 0 is fetched again, try 2 (status 503)",
        ),
        ({"state": "wanted", "tries": 1}, "image 0 is fetched again, try 2"),
    ],
)
async def test_an_image_is_told_in_words_whatever_is_known_of_it(
    image: dict[str, Any], said: str, tmp_path: Path
) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job(state=State.SUCCEEDED)
        row = {"job_id": job.id, "n": 0, "renewals": 0, "next_at": 2**53, "give_up_at": 2**53, **image}
        statement = f"INSERT INTO images ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
        await execute(here.receiver.parts.database, statement, *row.values())
        timeline = await explain(here.receiver.parts.database, job.id, datetime.now(UTC))
        assert timeline is not None
        assert [line.text for line in (*timeline.past, *timeline.next) if line.what == "image"] == [said]
        answered = (await here.client.get(f"/v1/jobs/{job.id}")).json()["images"][0]
        assert answered["lost_reason"] == (said.partition("lost: ")[2] or None)


@pytest.mark.sqlite(reason="the file is not there")
async def test_an_unknown_job_and_a_missing_database_are_reported_and_nothing_is_made(tmp_path: Path) -> None:
    receiver = LiveReceiver(tmp_path / "data")
    done = await jobs(receiver, "list")
    assert done.status == 1
    assert "there is no database" in done.err
    assert not receiver.data_dir.exists()
    assert (await receiver_command("migrate", environment=receiver.full_environment(), directory=tmp_path)).status == 0
    done = await jobs(receiver, "explain", "job_nowhere")
    assert (done.status, done.err.strip()) == (1, "receiver: there is no job job_nowhere")


async def _callback_url_of(receiver: LiveReceiver, client: httpx.AsyncClient, job_id: str) -> str:
    """A callback URL of our own minting, with the secret in the data directory."""
    from receiver.domain.tokens import Tokens

    secret = secrets_of(receiver.data_dir)["secret_key"]
    provider = (await client.get(f"/v1/jobs/{job_id}")).json()["provider"]
    return f"/callbacks/{provider}/{Tokens([secret]).callback(job_id, provider)}"
