"""Callbacks as the documentation promises them, and as they go wrong; received by a real server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from submitter.sandbox import FREEPIK_WEBHOOK_SECRET, Faults, Sandbox
from submitter.sandbox.stand_in import CallingStandIn
from tests.support.listener import Arrival, Listener, listening
from tests.support.sandbox_requests import PICTURE, Caller

SIGNER = Webhook(FREEPIK_WEBHOOK_SECRET.encode())
ENDS = {"freepik": "COMPLETED", "apixo": "success", "novita": "TASK_STATUS_SUCCEED"}


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listening({"/a.jpg": PICTURE}) as listener:
        yield listener


@asynccontextmanager
async def calling(listener: Listener, **settings: Any) -> AsyncIterator[tuple[Sandbox, Caller]]:
    sandbox = Sandbox(**{"turnaround_seconds": (0, 0), "seed": 1, "retry_scale": 0.0001, **settings})
    async with sandbox.serve() as origin, httpx.AsyncClient(trust_env=False, verify=False) as http:
        yield sandbox, Caller(http, origin, f"{listener.origin}/a.jpg")


def freepik_states(listener: Listener) -> list[str]:
    return [arrival.json["status"] for arrival in listener.arrivals]


def verified(arrival: Arrival) -> bool:
    try:
        SIGNER.verify(arrival.body, arrival.headers)
    except WebhookVerificationError:
        return False
    return True


async def test_freepik_reports_every_state_signed_and_unwrapped(listener: Listener) -> None:
    async with calling(listener) as (sandbox, caller):
        answer = await caller.freepik(listener.url)
        await sandbox.idle()
        reported = (await caller.freepik_status(answer.json()["data"]["task_id"])).json()["data"]
    assert freepik_states(listener) == ["CREATED", "IN_PROGRESS", "COMPLETED"]
    assert all(verified(arrival) for arrival in listener.arrivals)
    assert len({arrival.headers["webhook-id"] for arrival in listener.arrivals}) == 3
    last = listener.arrivals[-1].json
    assert last.keys() == reported.keys() == {"task_id", "status", "generated"}
    assert [link.partition("?")[0] for link in last["generated"]] == [
        link.partition("?")[0] for link in reported["generated"]
    ]


@pytest.mark.parametrize(
    ("encoding", "secret", "key"),
    [
        ("hex", "0123456789abcdef0123456789abcdef", bytes.fromhex("0123456789abcdef0123456789abcdef")),
        ("base64", "0123456789abcdef0123456789abcdef", base64.b64decode("0123456789abcdef0123456789abcdef")),
    ],
)
async def test_freepik_can_sign_with_the_other_encodings(
    listener: Listener, encoding: str, secret: str, key: bytes
) -> None:
    settings = {"freepik_webhook_secret": secret, "freepik_webhook_secret_encoding": encoding}
    async with calling(listener, **settings) as (sandbox, caller):
        await caller.freepik(listener.url)
        await sandbox.idle()
    Webhook(key).verify(listener.arrivals[0].body, listener.arrivals[0].headers)
    assert not verified(listener.arrivals[0])


async def test_freepik_does_not_retry(listener: Listener) -> None:
    listener.answers = [500, 500, 500]
    async with calling(listener) as (sandbox, caller):
        await caller.freepik(listener.url)
        await sandbox.idle()
    assert freepik_states(listener) == ["CREATED", "IN_PROGRESS", "COMPLETED"]


async def test_apixo_reports_the_end_once_like_its_status_call(listener: Listener) -> None:
    async with calling(listener) as (sandbox, caller):
        answer = await caller.apixo(listener.url)
        await sandbox.idle()
        reported = await caller.apixo_status(answer.json()["data"]["taskId"])
    assert [arrival.json for arrival in listener.arrivals] == [reported.json()]
    assert reported.json()["data"]["state"] == "success"


async def test_apixo_async_calls_nobody(listener: Listener) -> None:
    async with calling(listener) as (sandbox, caller):
        await caller.apixo(top={"callback_url": listener.url})
        await sandbox.idle()
    assert listener.arrivals == []


async def test_novita_reports_the_end_and_echoes_the_url(listener: Listener) -> None:
    async with calling(listener) as (sandbox, caller):
        answer = await caller.novita(listener.url)
        await sandbox.idle()
        reported = (await caller.novita_status(answer.json()["task_id"])).json()
    [arrival] = listener.arrivals
    assert arrival.json["event_type"] == "ASYNC_TASK_RESULT"
    assert arrival.json["payload"]["extra"]["webhook"] == {"url": listener.url}
    assert {**arrival.json["payload"], "extra": None} == {**reported, "extra": None}


@pytest.mark.parametrize("status", ["TASK_STATUS_SUCCEED", "TASK_STATUS_FAILED"])
async def test_novita_test_mode_sends_the_wanted_end_and_bills_nothing(listener: Listener, status: str) -> None:
    mode = {"enabled": True, "return_task_status": status}
    async with calling(listener) as (sandbox, caller):
        await caller.novita(extra={"webhook": {"url": listener.url, "test_mode": mode}})
        await sandbox.idle()
    assert [arrival.json["payload"]["task"]["status"] for arrival in listener.arrivals] == [status]
    assert not sandbox.tasks[0].billed


@pytest.mark.parametrize(
    ("provider", "answers", "attempts"),
    [
        ("apixo", [204], 2),
        ("apixo", [500, 302], 3),
        ("apixo", [503] * 9, 4),
        ("novita", [204], 1),
        ("novita", [302, 500], 3),
        ("novita", [503] * 9, 6),
    ],
)
async def test_retries_are_the_documented_ones(
    listener: Listener, provider: str, answers: list[int | float], attempts: int
) -> None:
    listener.answers = answers
    async with calling(listener) as (sandbox, caller):
        await caller.submit(provider, listener.url)
        await sandbox.idle()
    [task] = sandbox.tasks
    assert len(listener.arrivals) == task.callback_attempts == attempts
    assert len({arrival.body for arrival in listener.arrivals}) == 1


async def test_a_slow_listener_is_a_failed_attempt(listener: Listener) -> None:
    listener.answers = [0.5]
    async with calling(listener, callback_timeout_scale=0.02) as (sandbox, caller):
        await caller.novita(listener.url)
        await sandbox.idle()
    [callback] = sandbox.tasks[0].callbacks
    assert [(attempt.status, attempt.error) for attempt in callback.attempts] == [(None, "timeout"), (200, None)]


@pytest.mark.parametrize("provider", ["freepik", "apixo", "novita"])
async def test_a_failed_task_is_reported_as_such(listener: Listener, provider: str) -> None:
    async with calling(listener, faults=Faults(fail=1)) as (sandbox, caller):
        await caller.submit(provider, listener.url)
        await sandbox.idle()
        await caller.submit(provider, listener.url)
        await sandbox.idle()
    stand_in = sandbox.stand_ins[provider]
    assert [task.state for task in sandbox.tasks] == [stand_in.failed, stand_in.succeeded]
    assert stand_in.failed in listener.arrivals[len(listener.arrivals) // 2 - 1].body.decode()


async def test_lost_callbacks_never_arrive(listener: Listener) -> None:
    async with calling(listener, faults=Faults(lose=2)) as (sandbox, caller):
        await caller.freepik(listener.url)
        await sandbox.idle()
    assert freepik_states(listener) == ["COMPLETED"]
    assert [callback.kind for callback in sandbox.tasks[0].callbacks] == ["lost", "lost", "true"]


async def test_a_duplicate_of_a_signed_callback_has_its_own_signature(listener: Listener) -> None:
    async with calling(listener, faults=Faults(duplicate=1.0)) as (sandbox, caller):
        await caller.freepik(listener.url)
        await sandbox.idle()
    assert freepik_states(listener) == [state for state in ("CREATED", "IN_PROGRESS", "COMPLETED") for _ in (1, 2)]
    assert len({arrival.headers["webhook-id"] for arrival in listener.arrivals}) == 6
    assert all(verified(arrival) for arrival in listener.arrivals)


async def test_a_replay_is_the_same_request_again(listener: Listener) -> None:
    async with calling(listener, faults=Faults(replay=1)) as (sandbox, caller):
        await caller.freepik(listener.url)
        await sandbox.idle()
    assert freepik_states(listener) == ["CREATED", "CREATED", "IN_PROGRESS", "COMPLETED"]
    first, second = listener.arrivals[:2]
    assert (first.body, first.headers) == (second.body, second.headers)


@pytest.mark.parametrize("provider", ["apixo", "novita"])
async def test_unsigned_callbacks_are_duplicated_too(listener: Listener, provider: str) -> None:
    async with calling(listener, faults=Faults(duplicate=1)) as (sandbox, caller):
        await caller.submit(provider, listener.url)
        await caller.submit(provider, listener.url)
        await sandbox.idle()
    assert len(listener.arrivals) == 3


async def test_reordered_states_come_last_first(listener: Listener) -> None:
    async with calling(listener, faults=Faults(reorder=1)) as (sandbox, caller):
        await caller.freepik(listener.url)
        await sandbox.idle()
        await caller.freepik(listener.url)
        await sandbox.idle()
    states = ["CREATED", "IN_PROGRESS", "COMPLETED"]
    assert freepik_states(listener) == [*reversed(states), *states]
    assert listener.arrivals[2].json["generated"] == []


@pytest.mark.parametrize("provider", ["freepik", "apixo", "novita"])
async def test_a_forged_callback_claims_a_foreign_result(listener: Listener, provider: str) -> None:
    async with calling(listener, faults=Faults(forge=1)) as (sandbox, caller):
        await caller.submit(provider, listener.url)
        await sandbox.idle()
        [task] = sandbox.tasks
        forged = [arrival for arrival in listener.arrivals if b"/forged/" in arrival.body]
        assert len(forged) == 1
        assert task.id in forged[0].body.decode()
        assert ENDS[provider] in forged[0].body.decode()
        assert [callback.kind for callback in task.callbacks].count("forged") == 1
        if provider == "freepik":
            assert [verified(arrival) for arrival in listener.arrivals].count(False) == 1
            assert not verified(forged[0])
            assert sandbox.forged_fetches == 0
            await caller.http.get(forged[0].json["generated"][0])
            assert sandbox.forged_fetches == 1


@pytest.mark.parametrize("provider", ["freepik", "apixo", "novita"])
async def test_early_callbacks_arrive_before_the_submit_answer(listener: Listener, provider: str) -> None:
    async with calling(listener, faults=Faults(early=1), turnaround_seconds=(60, 60)) as (_, caller):
        answer = await caller.submit(provider, listener.url)
        arrived = len(listener.arrivals)
    assert answer.status_code == 200
    assert arrived == (3 if provider == "freepik" else 1)
    assert ENDS[provider] in listener.arrivals[-1].body.decode()


async def test_delayed_callbacks_come_after_the_task_has_ended(listener: Listener) -> None:
    async with calling(listener, faults=Faults(delay_seconds=0.3)) as (sandbox, caller):
        await caller.apixo(listener.url)
        await sandbox.tasks[0].ended.wait()
        assert listener.arrivals == []
        await sandbox.idle()
    assert len(listener.arrivals) == 1


async def test_the_same_seed_loses_the_same_callbacks(listener: Listener) -> None:
    async def run(seed: int) -> list[str]:
        async with calling(listener, faults=Faults(lose=0.5), seed=seed) as (sandbox, caller):
            for _ in range(12):
                await caller.novita(listener.url)
            await sandbox.idle()
            return [task.callbacks[0].kind for task in sandbox.tasks]

    first = await run(5)
    assert {"lost", "true"} == set(first)
    assert await run(5) == first
    assert await run(6) != first


@pytest.mark.parametrize(
    ("provider", "state", "sent"),
    [
        ("freepik", "created", "CREATED"),
        ("freepik", "in_progress", "IN_PROGRESS"),
        ("freepik", "completed", "COMPLETED"),
        ("freepik", "FAILED", "FAILED"),
        ("apixo", "success", "success"),
        ("apixo", "failed", "failed"),
        ("novita", "succeed", "TASK_STATUS_SUCCEED"),
        ("novita", "TASK_STATUS_FAILED", "TASK_STATUS_FAILED"),
    ],
)
async def test_trigger_sends_one_true_callback(listener: Listener, provider: str, state: str, sent: str) -> None:
    listener.answers = [418]
    async with calling(listener, faults=Faults(lose=1.0)) as (sandbox, caller):
        asked = {"provider": provider, "state": state, "callback_url": listener.url}
        answer = await caller.http.post(f"{caller.origin}/_sandbox/trigger", json=asked)
        [task] = sandbox.tasks
        facts = {"provider": provider, "task_id": task.id, "state": sent, "status": 418, "error": None}
        assert answer.json() == facts
        [arrival] = listener.arrivals
        assert sent in arrival.body.decode()
        assert verified(arrival) == (provider == "freepik")
        assert (task.triggered, task.billed, sandbox.accepted()) == (True, False, [])
        if state in ("completed", "success", "succeed"):
            link = sandbox.stand_ins[provider].link(task, task.files[0])
            assert (await caller.http.get(link)).headers["content-type"] == "image/jpeg"


async def test_trigger_can_speak_for_a_running_task(listener: Listener) -> None:
    async with calling(listener, turnaround_seconds=(60, 60)) as (sandbox, caller):
        task_id = (await caller.novita(listener.url)).json()["task_id"]
        asked = {"provider": "novita", "state": "succeed", "task_id": task_id}
        answer = await caller.http.post(f"{caller.origin}/_sandbox/trigger", json=asked)
        assert answer.json()["task_id"] == listener.arrivals[0].json["payload"]["task"]["task_id"] == task_id
        assert (await caller.novita_status(task_id)).json()["task"]["status"] == "TASK_STATUS_SUCCEED"
        await sandbox.idle()
    assert len(listener.arrivals) == 1


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"provider": "upscayl", "state": "processed"}, "sends no callbacks"),
        ({"provider": "pixelcut", "state": "done"}, "sends no callbacks"),
        ({"provider": "topaz", "state": "done"}, "provider must be one of"),
        ({"provider": "apixo", "state": "processing"}, "state must be one of success, failed"),
        ({"provider": "novita", "state": "succeed"}, "callback_url"),
        ({"provider": "novita", "state": 7}, "texts"),
        ([], "object"),
    ],
)
async def test_trigger_refuses(listener: Listener, asked: Any, why: str) -> None:
    async with calling(listener) as (_, caller):
        answer = await caller.http.post(f"{caller.origin}/_sandbox/trigger", json=asked)
    assert answer.status_code == 400
    assert why in answer.json()["error"]


async def test_no_log_line_holds_a_callback_url(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with calling(listener) as (sandbox, caller):
        await caller.freepik(listener.url)
        await sandbox.idle()
    assert len(listener.arrivals) == 3
    ours = [record.getMessage() for record in caplog.records if record.name != "httpx"]
    assert not [line for line in ours if "/callbacks/token" in line or "token=exp" in line]
    asked_by_the_test = [record for record in caplog.records if record.name == "httpx"]
    assert len(asked_by_the_test) == 1


def test_the_signature_is_the_documented_one() -> None:
    """Computed by hand: id.timestamp.body, HMAC-SHA256 over the UTF-8 secret, base64."""
    sandbox = Sandbox(freepik_webhook_secret="0123456789abcdef0123456789abcdef")
    freepik = sandbox.stand_ins["freepik"]
    assert isinstance(freepik, CallingStandIn)
    body = b'{"task_id":"046b6c7f","status":"IN_PROGRESS","generated":[]}'
    headers = freepik.callback_headers(body)
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = b"0123456789abcdef0123456789abcdef".ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + content).digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(outer).decode()
