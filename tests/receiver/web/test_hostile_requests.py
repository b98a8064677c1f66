"""
Requests that nobody should send, at every door of a running receiver: a refusal that says what to change, nothing else.

On PostgreSQL as on SQLite (`RECEIVER_TEST_ENGINE=postgresql`): it refuses texts and numbers that SQLite takes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from submitter.sandbox import test_picture as picture_bytes
from tests.support.hostile_requests import (
    CHARSETS,
    DOCUMENTS,
    HALVES,
    IDS,
    QUERY_VALUES,
    RAW_VALUES,
    Answer,
    exchange,
    multipart,
    parameter,
    raw,
    spoilt,
)
from tests.support.ports import free_port
from tests.support.processes import TOKEN, LiveReceiver, live, submit, wait_for_state

PICTURE = picture_bytes(48, 48)
TOKEN_HEADER = ("authorization", f"Bearer {TOKEN}")
JSON_HEADER = ("content-type", "application/json")
FORM_HEADER = ("content-type", "application/x-www-form-urlencoded")
LISTS = {
    "/v1/jobs": ("state", "provider", "since", "until", "q", "cursor", "limit"),
    "/v1/lost": ("cursor", "limit"),
    "/v1/events": ("type", "job", "provider", "after", "cursor", "limit"),
    "/v1/endpoints": ("cursor", "limit"),
    "/v1/deliveries": ("state", "job", "endpoint", "event_type", "cursor", "limit"),
    "/v1/stats": ("cursor", "limit"),
    "/v1/providers": (),
    "/v1/jobs/{done}/evidence": ("cursor", "limit"),
}
BY_ID = {
    "GET": (
        *("/v1/jobs/{}", "/v1/jobs/{}/evidence", "/v1/jobs/{}/input", "/v1/jobs/{}/input/thumbnail", "/v1/{}"),
        *("/v1/jobs/{}/images/0", "/v1/endpoints/{}", "/v1/deliveries/{}", "/v1/events/{}"),
    ),
    "POST": (
        *("/v1/jobs/{}/cancel", "/v1/jobs/{}/resubmit", "/v1/jobs/{}/poll", "/v1/endpoints/{}/test"),
        *("/v1/endpoints/{}/rotate-secret", "/v1/deliveries/{}/replay", "/v1/providers/{}/pause"),
        "/v1/providers/{}/resume",
    ),
    "PATCH": ("/v1/endpoints/{}",),
    "PUT": ("/v1/endpoints/{}",),
    "DELETE": ("/v1/endpoints/{}",),
}
PAGES = (
    "/",
    "/jobs",
    "/deliveries",
    "/endpoints",
    "/providers",
    "/send",
    "/compare",
    "/login",
    "/open",
    "/jobs/{done}",
)
PAGE_PARAMETERS = ("page", "since", "until", "state", "q", "sort", "cursor", "job", "ids", "done", "next", "provider")
FORMS = (
    *("/login", "/jobs/bulk", "/jobs/{queued}/poll", "/jobs/{queued}/cancel", "/jobs/%00/resubmit", "/jobs/%FF/poll"),
    *("/deliveries/replay", "/deliveries/%00/replay", "/endpoints", "/endpoints/{endpoint}", "/endpoints/%00/test"),
    *("/endpoints/%00/rotate-secret", "/providers/%00/pause", "/providers/novita/pause", "/send", "/compare"),
)
FORM_FIELDS = ("url", "description", "reason", "provider", "rate", "key", "ids", "next", "token", "image", "q")


@dataclass
class Stage:
    """A receiver with a finished job, a queued one, and a disabled endpoint, whose ids are in *ids*."""

    receiver: LiveReceiver
    ids: dict[str, str]

    async def ask(self, request: bytes) -> Answer:
        answer = await exchange(self.receiver.port, request)
        assert answer.status < 500, (request[:300], answer)
        return answer

    async def refused(self, request: bytes) -> dict[str, Any]:
        """The problem of a request that must be refused."""
        answer = await self.ask(request)
        assert 400 <= answer.status < 500, (request[:300], answer)
        return answer.problem

    async def well_answered(self, request: bytes) -> None:
        """Whatever the answer is, it is no fault of ours, and a refusal says what to change."""
        answer = await self.ask(request)
        assert answer.status < 400 or answer.problem

    async def count(self) -> list[int]:
        """The number of jobs, and of endpoints."""
        async with self.receiver.client() as client:
            pages = [(await client.get(f"/v1/{name}?limit=200")).json() for name in ("jobs", "endpoints")]
            return [len(page["items"]) for page in pages]


@asynccontextmanager
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with live(tmp_path) as (receiver, _):
        async with receiver.client() as client:
            done = await submit(client, "upscayl", PICTURE)
            await wait_for_state(client, done["id"], "succeeded", kept=True)
            await client.post("/v1/providers/novita/pause")
            queued = await submit(client, "novita", PICTURE)
            nobody = {"url": f"http://127.0.0.1:{free_port()}/hook", "enabled": False}
            endpoint = (await client.post("/v1/endpoints", json=nobody)).json()
        yield Stage(receiver, {"done": done["id"], "queued": queued["id"], "endpoint": endpoint["id"]})
    for line in receiver.log.splitlines():
        assert "Traceback" not in line and '"level": "error"' not in line, line


@pytest.mark.slow
async def test_lists_refuse_what_they_do_not_understand(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        for path, names in LISTS.items():
            path = path.format(**here.ids)
            for name in names:
                for value in (*QUERY_VALUES, *RAW_VALUES):
                    await here.well_answered(
                        raw("GET", path.encode() + b"?" + parameter(name, value), b"", TOKEN_HEADER)
                    )
                if name in ("cursor", "limit", "since", "q", "job", "after"):
                    problem = await here.refused(raw("GET", f"{path}?{name}=1&{name}=2", b"", TOKEN_HEADER))
                    assert (problem["code"], problem["field"]) == ("repeated_parameter", name)
            problem = await here.refused(raw("GET", f"{path}?colour=1", b"", TOKEN_HEADER))
            assert (problem["code"], problem["field"]) == ("unknown_parameter", "colour")
            for id_ in here.ids.values():
                await here.well_answered(raw("GET", f"{path}?cursor={id_[:-1]}", b"", TOKEN_HEADER))
            unencoded = await here.ask(raw("GET", f"{path}?q=é", b"", TOKEN_HEADER))
            assert (unencoded.status, b"must be percent-encoded" in unencoded.body) == (400, True)
            assert (await here.ask(raw("GET", f"{path}?q={'x' * 1_000_000}", b"", TOKEN_HEADER))).status == 431


@pytest.mark.slow
async def test_no_id_in_a_path_is_more_than_unknown(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        for method, paths in BY_ID.items():
            for path in paths:
                for id_ in IDS:
                    body = b'{"url": "http://127.0.0.1:20000/hook"}' if method in ("PUT", "PATCH") else b""
                    await here.refused(raw(method, path.format(id_), body, TOKEN_HEADER, JSON_HEADER))
        for path in ("/jobs/{}", "/jobs/{}/input", "/jobs/{}/images/0", "/{}", "/static/{}", "/inputs/{}"):
            for id_ in IDS:
                assert (await here.ask(raw("GET", path.format(id_)))).status < 500


@pytest.mark.slow
async def test_bodies_are_carried_out_whole_or_refused(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        before, admitted = await here.count(), 0
        job = {
            "provider": "upscayl",
            "image": {"base64": base64.b64encode(PICTURE).decode()},
            "options": {},
            "metadata": {},
            "notify_url": f"http://127.0.0.1:{free_port()}/n",
        }
        change = {
            "url": f"http://127.0.0.1:{free_port()}/h",
            "event_types": ["job.succeeded"],
            "providers": ["freepik"],
            "description": "d",
            "enabled": False,
            "timeout_seconds": 5.0,
            "concurrency": 1,
            "rate": "1/60",
        }
        endpoint = f"/v1/endpoints/{here.ids['endpoint']}"
        doors: dict[tuple[str, str], dict[str, Any]] = {
            ("POST", "/v1/jobs"): job,
            ("POST", "/v1/endpoints"): {**change, "secret": "whsec_" + "A" * 32},
            ("PATCH", endpoint): change,
            ("PUT", endpoint): change,
            ("POST", f"{endpoint}/rotate-secret"): {"overlap_seconds": 1.0, "secret": "whsec_" + "B" * 32},
            ("POST", f"{endpoint}/test"): {"event_type": "job.failed"},
            ("POST", "/v1/deliveries/replay"): {"endpoint_id": "ep", "since": "2026-01-01T00:00:00Z", "dry_run": True},
            ("POST", "/v1/providers/pixelcut/pause"): {"reason": "closed"},
            ("POST", f"/v1/jobs/{here.ids['done']}/cancel"): {"abandon": False},
            ("POST", f"/v1/jobs/{here.ids['done']}/resubmit"): {"may_pay_twice": False},
        }
        made = [0, 0]
        for (method, path), document in doors.items():
            for body in DOCUMENTS:
                await here.refused(raw(method, path, body, TOKEN_HEADER, JSON_HEADER))
            for wrong in spoilt(document):
                answer = await here.ask(raw(method, path, json.dumps(wrong).encode(), TOKEN_HEADER, JSON_HEADER))
                assert answer.status < 400 or answer.problem
                made[0] += (path, answer.status) == ("/v1/jobs", 202)
                made[1] += (path, answer.status) == ("/v1/endpoints", 201)
                admitted += answer.status < 400
        assert admitted
        now = await here.count()
        assert [late - early for late, early in zip(now, before, strict=True)] == made


@pytest.mark.slow
async def test_pages_show_or_refuse_whatever_is_in_their_addresses_and_forms(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        body = urlencode({"token": TOKEN}).encode()
        cookie = (
            "cookie",
            (await here.ask(raw("POST", "/login", body, FORM_HEADER))).headers["set-cookie"].split(";")[0],
        )
        async with here.receiver.client() as client:
            page = (await client.get("/jobs", headers={"cookie": cookie[1]})).text
        found = re.search(r'name="form_token" value="([^"]+)"', page)
        assert found is not None
        token = found[1]
        for path in PAGES:
            for name in PAGE_PARAMETERS:
                for value in ("-1", "1e9", "garbage", "\0", "٣", "x" * 5000, b"%FF", b"%ED%A0%80", "' OR 1=1"):
                    target = path.format(**here.ids).encode() + b"?" + parameter(name, value)
                    assert (await here.ask(raw("GET", target, b"", cookie))).status < 500
        for path in FORMS:
            path = path.format(**here.ids)
            for field in FORM_FIELDS:
                for value in ("", "\0", "9" * 400, "nan", "😀", '{"a":"\\ud800"}', b"%FF", b"%ED%A0%80"):
                    twice = b"&".join((parameter(field, value), parameter(field, value)))
                    await here.ask(
                        raw("POST", path, parameter("form_token", token) + b"&" + twice, cookie, FORM_HEADER)
                    )
            for charset in CHARSETS:
                kind = ("content-type", f"multipart/form-data; boundary=BOUND; charset={charset}")
                for half in HALVES:
                    fields = [(f'name="{field}"', half) for field in FORM_FIELDS]
                    form = multipart(('name="form_token"', token.encode()), *fields)
                    await here.ask(raw("POST", path, form, cookie, kind))
            file = multipart(('name="form_token"', token.encode()), ('name="url"; filename="x"', b"x"))
            for parameters in ("; boundary=BOUND", "", "; boundary="):
                uploaded = ("content-type", f"multipart/form-data{parameters}")
                await here.ask(raw("POST", path, file, cookie, uploaded))
                await here.ask(raw("POST", path, file[:-20], cookie, uploaded))


async def test_what_is_said_twice_is_refused_instead_of_one_of_them_chosen(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        body = json.dumps({"provider": "upscayl", "image": {"base64": base64.b64encode(PICTURE).decode()}}).encode()
        keys = [("idempotency-key", "order-1"), ("idempotency-key", "order-2")]
        problem = await here.refused(raw("POST", "/v1/jobs", body, TOKEN_HEADER, JSON_HEADER, *keys))
        assert (problem["code"], problem["remedy"]) == ("invalid_idempotency_key", "send one")
        other = ("authorization", "Bearer another")
        assert (await here.refused(raw("GET", "/v1/jobs", b"", TOKEN_HEADER, other)))["status"] == 401
        assert (await here.refused(raw("GET", "/v1/jobs", b"", other, TOKEN_HEADER)))["status"] == 401
        assert (await here.ask(raw("GET", "/v1/jobs", b"", TOKEN_HEADER, TOKEN_HEADER))).status == 200
        doubled = b'{"provider": "novita", ' + body[1:]
        problem = await here.refused(raw("POST", "/v1/jobs", doubled, TOKEN_HEADER, JSON_HEADER))
        assert problem["detail"] == "an object has the name 'provider' more than once"
        assert (await here.count())[0] == 2
