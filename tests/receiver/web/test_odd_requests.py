"""Requests as gateways, stock clients and strangers write them, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from tests.receiver.web.test_callbacks import answer_of, request
from tests.support.running_receiver import at_the_wire, freepik_body, novita_body, running_receiver, signed

TOKEN = "Bearer a-token-of-the-tests"
BOM = b"\xef\xbb\xbf"
PICTURE = picture_bytes(64, 64)


async def sent(port: int, *pieces: bytes) -> tuple[int, dict[str, Any]]:
    """The status and JSON of the answer to *pieces*, sent apart on a connection of their own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.02)
    status, _, body = await answer_of(reader)
    writer.close()
    return status, json.loads(body) if body.startswith(b"{") else {}


def job_document() -> bytes:
    return json.dumps({"provider": "novita", "image": {"base64": base64.b64encode(PICTURE).decode()}}).encode()


@pytest.mark.parametrize("provider", ["freepik", "novita"])
async def test_a_callback_that_offers_an_upgrade_is_kept_whole(provider: str, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver) as port:
        job = await here.job(provider)
        body = (freepik_body if provider == "freepik" else novita_body)(job.remote_id or "", "IN_PROGRESS")
        headers = {"connection": "Upgrade", "upgrade": "h2c", **signed(body)}
        whole = request(here.path(job), body, **headers)
        at = whole.index(b"\r\n\r\n") + 4
        assert (await sent(port, whole))[0] == 200
        assert (await sent(port, whole[:at], whole[at:]))[0] == 200
        inner = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        assert (await sent(port, request(here.path(job), inner, **{**headers, **signed(inner)})))[0] == 200
        assert [piece.body for piece in await here.evidence(job)] == [body, body, inner]


async def test_a_callback_of_another_length_than_announced_is_never_a_200(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        answered: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"four", "more_body": False}

        async def send(message: Any) -> None:
            answered.append(message)

        for announced in (b"0", b"5", b"99999", b"9" * 5000, b"-1", b"x"):
            answered.clear()
            headers = [(b"host", b"x"), (b"content-length", announced)]
            path = here.path(job)
            scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": ("192.0.2.1", 1)}
            await here.receiver.app({**scope, "query_string": b"", "root_path": ""}, receive, send)
            assert answered[0]["status"] == 400, announced
        assert await here.evidence(job) == []


async def test_white_space_behind_a_key_makes_no_second_job(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver) as port:
        ids = set()
        for key in ("order-17", "order-17 ", "\torder-17\t"):
            raw = request(
                "/v1/jobs",
                job_document(),
                authorization=f"{TOKEN} ",
                content_type="application/json ",
                idempotency_key=key,
            )
            status, job = await sent(port, raw)
            assert status in (200, 202)
            ids.add(job["id"])
        assert len(ids) == 1
        behind_another_server = await here.client.post(
            "/v1/jobs",
            content=job_document(),
            headers={"content-type": "application/json", "idempotency-key": "order-17 "},
        )
        assert behind_another_server.json()["id"] in ids


async def test_white_space_behind_signature_headers_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver) as port:
        job = await here.job("freepik")
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
            body = freepik_body(job.remote_id or "", "IN_PROGRESS")
            headers = {key: f"{value} " if key == name else value for key, value in signed(body).items()}
            assert (await sent(port, request(here.path(job), body, **headers)))[0] == 200
            assert (await here.post(job, body, headers)).status_code == 200
        marked = BOM + freepik_body(job.remote_id or "", "COMPLETED")
        assert (await sent(port, request(here.path(job), marked, **signed(marked))))[0] == 200
        assert (await here.becomes(job, State.SUCCEEDED)).settled_by == "callback"
        kept = (await here.evidence(job))[-1]
        assert kept.body == marked


async def test_a_position_with_white_space_behind_is_taken(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = f"authorization: {TOKEN}\r\naccept: text/event-stream\r\nlast-event-id: 0 \r\n"
        writer.write(f"GET /v1/events HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode())
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()


async def test_a_byte_order_mark_before_a_posted_job_is_passed_over(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here, at_the_wire(here.receiver) as port:
        raw = request("/v1/jobs", BOM + job_document(), authorization=TOKEN, content_type="application/json")
        assert (await sent(port, raw))[0] == 202
        large = {"provider": "novita", "image": {"base64": base64.b64encode(picture_bytes(900, 900)).decode()}}
        body = BOM + json.dumps(large).encode()
        raw = request("/v1/jobs", body, authorization=TOKEN, content_type="application/json")
        assert (await sent(port, raw))[0] == 202


async def test_a_slash_at_the_end_is_the_same_callback_url(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        assert (await here.client.get(f"{here.path(job)}/")).status_code == 200
        answer = await here.client.post(f"{here.path(job)}/", content=novita_body(job.remote_id or "", "COMPLETED"))
        assert answer.status_code == 200
        assert len(await here.evidence(job)) == 1
        assert (await here.client.post(f"{here.path(job)}/x", content=b"{}")).status_code == 404


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "1.5", "x", "\u0661", "00000"])
async def test_an_image_number_that_is_none_is_not_found(number: str, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        path = f"/v1/jobs/{job.id}/images/{number}"
        assert (await here.client.get(path)).status_code == 404
        assert (await here.client.get(path, headers={"authorization": "Bearer x"})).status_code == 401


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "preamble", [b"", b"This is a message with multiple parts.\r\n", b"\r\n", b"--X\r\n--Bo\r\n" * 99]
)
async def test_a_multipart_preamble_is_skipped(preamble: bytes, step: int, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        body = preamble + b"\r\n".join(
            [
                b'--Boundary\r\nContent-Disposition: form-data; name="job"\r\n\r\n{"provider": "novita"}',
                b'--Boundary\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + PICTURE,
                b"--Boundary--\r\n",
            ]
        )

        async def pieces() -> Any:
            for at in range(0, len(body), step):
                yield body[at : at + step]

        headers = {"content-type": "multipart/form-data; boundary=Boundary"}
        answer = await here.client.post("/v1/jobs", content=pieces(), headers=headers)
        assert answer.status_code == 202, answer.text


LARGE = picture_bytes(1400, 1400)


@pytest.mark.parametrize("line_break", [b"", b"\\n", b"\\r\\n", b"\\/"])
async def test_a_large_picture_in_json_may_be_broken_into_lines(line_break: bytes, tmp_path: Path) -> None:
    text = base64.b64encode(LARGE)
    if line_break == b"\\/":
        text = text.replace(b"/", line_break)
    elif line_break:
        text = line_break.join(text[at : at + 76] for at in range(0, len(text), 76)) + line_break
    assert len(text) > 500_000
    async with running_receiver(tmp_path) as here:
        body = b'{"provider": "novita", "image": {"base64": "' + text + b'"}}'
        headers = {"content-type": "application/json"}
        answers = await asyncio.gather(*(here.client.post("/v1/jobs", content=body, headers=headers) for _ in range(4)))
        for answer in answers:
            assert answer.status_code == 202, answer.text
        assert not list((tmp_path / "data" / "parts").iterdir())


BUSY = {
    "a list of lists": b'{"provider": "novita", "metadata": {"x": [' + b"[]," * 500_000 + b"0]}}",
    "many pictures": b'{"provider": "novita", "x": [' + b'{"base64":""},' * 100_000 + b"0]}",
    "a picture elsewhere": b'{"provider": "novita", "metadata": {"base64": "' + b"A" * 2_000_000 + b'"}}',
    "no picture at all": b'{"provider": "' + b"x" * 2_000_000 + b'"}',
    "escapes": b'{"provider": "novita", "image": {"base64": "' + b"\\u0041" * 400_000 + b'"}}',
}


@pytest.mark.parametrize("what", BUSY)
async def test_json_that_is_large_apart_from_its_picture_is_refused_unparsed(what: str, tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        headers = {"content-type": "application/json"}
        answer = await here.client.post("/v1/jobs", content=BUSY[what], headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert not list((tmp_path / "data" / "parts").iterdir())
