"""Faults of the answers: each polls as it should, and a task exists exactly if it was accepted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from submitter.sandbox import Faults, Sandbox
from submitter.sandbox.app import STAND_INS
from tests.support.listener import Listener, listening
from tests.support.sandbox_requests import PICTURE, Caller
from tests.support.waiting import eventually, patience

PROVIDERS = [stand_in.name for stand_in in STAND_INS]


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listening({"/a.jpg": PICTURE}) as listener:
        yield listener


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox(turnaround_seconds=(0, 0), seed=1)


@pytest.fixture
async def caller(sandbox: Sandbox, listener: Listener) -> AsyncIterator[Caller]:
    async with sandbox.serve() as origin, httpx.AsyncClient(trust_env=False, verify=False) as http:
        yield Caller(http, origin, f"{listener.origin}/a.jpg")


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_reset_after_acceptance_leaves_a_billed_task_that_runs(
    caller: Caller, sandbox: Sandbox, listener: Listener, provider: str
) -> None:
    sandbox.faults = Faults(accept_then_reset=1)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await caller.submit(provider, listener.url)
    await sandbox.idle()
    [task] = sandbox.accepted(provider)
    assert task.state == sandbox.stand_ins[provider].succeeded
    assert task.billed == (provider != "upscayl")
    assert (await caller.submit(provider, listener.url)).status_code == 200


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_reset_before_acceptance_leaves_nothing(caller: Caller, sandbox: Sandbox, provider: str) -> None:
    sandbox.faults = Faults(reset_before=2)
    for _ in range(2):
        with pytest.raises((httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
            await caller.submit(provider)
    assert sandbox.tasks == []
    assert (await caller.submit(provider)).status_code == 200
    assert (len(sandbox.tasks), sandbox.calls(provider)) == (1, 3)


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        ("busy", dict.fromkeys(PROVIDERS, 429)),
        ("unavailable", dict.fromkeys(PROVIDERS, 503)),
        ("server_error", dict.fromkeys(PROVIDERS, 500)),
        ("bad_gateway", dict.fromkeys(PROVIDERS, 502)),
        ("bad_key", dict.fromkeys(PROVIDERS, 401)),
        ("no_credit", {"freepik": 403, "apixo": 402, "novita": 400, "upscayl": 402, "pixelcut": 403}),
    ],
)
async def test_refusals_accept_nothing_and_last_as_often_as_reported(
    caller: Caller, sandbox: Sandbox, fault: str, statuses: dict[str, int]
) -> None:
    for provider in PROVIDERS:
        sandbox.faults = Faults(**{fault: 2}, retry_after_seconds=7)
        for _ in range(2):
            answer = await caller.submit(provider)
            assert answer.status_code == statuses[provider]
            assert answer.headers.get("retry-after") == ("7" if fault in ("busy", "unavailable") else None)
        assert sandbox.accepted(provider) == []
        assert (await caller.submit(provider)).status_code == 200
        assert len(sandbox.accepted(provider)) == 1


@pytest.mark.parametrize(
    ("provider", "fault", "body"),
    [
        ("freepik", "server_error", {"message": "Internal Server Error"}),
        ("freepik", "unavailable", {"message": "Service Unavailable. Please try again later."}),
        ("novita", "busy", ("RATE_LIMIT_EXCEEDED", 429)),
        ("novita", "no_credit", ("BILLING_BALANCE_NOT_ENOUGH", 400)),
        ("novita", "server_error", ("CREATE_TASK_FAILED", 500)),
        ("upscayl", "server_error", "Error processing request"),
        ("upscayl", "no_credit", "Insufficient credits"),
        ("pixelcut", "busy", {"error": "Too many requests", "error_code": "rate_limit_exceeded"}),
        (
            "pixelcut",
            "no_credit",
            {"error": "Insufficient credits available", "error_code": "insufficient_api_credits"},
        ),
    ],
)
async def test_refusals_speak_as_documented(
    caller: Caller, sandbox: Sandbox, provider: str, fault: str, body: Any
) -> None:
    sandbox.faults = Faults(**{fault: 1})
    reported = (await caller.submit(provider)).json()
    assert (reported["reason"], reported["code"]) == body if isinstance(body, tuple) else reported == body


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_lost_answers_of_every_kind_keep_the_task(caller: Caller, sandbox: Sandbox, provider: str) -> None:
    sandbox.faults = Faults(accept_then_bad_gateway=1)
    assert (await caller.submit(provider)).status_code == 502
    sandbox.faults = Faults(unreadable=1)
    unreadable = await caller.submit(provider)
    assert unreadable.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        unreadable.json()
    sandbox.faults = Faults(hang=1, hang_seconds=0.05)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await caller.submit(provider)
    await sandbox.idle()
    assert [task.state for task in sandbox.accepted(provider)] == [sandbox.stand_ins[provider].succeeded] * 3


async def test_a_hanging_answer_outlasts_the_client(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    sandbox = Sandbox(turnaround_seconds=(0, 0), faults=Faults(hang=1))
    async with sandbox.serve() as origin, httpx.AsyncClient(trust_env=False, verify=False, timeout=0.2) as http:
        with pytest.raises(httpx.ReadTimeout):
            await Caller(http, origin).novita()
        assert len(sandbox.accepted("novita")) == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_hanging_answer_does_not_hold_up_the_end(listener: Listener) -> None:
    sandbox = Sandbox(turnaround_seconds=(0, 0), faults=Faults(hang=1.0, per_provider={"pixelcut": Faults(stuck=1.0)}))
    async with httpx.AsyncClient(trust_env=False, verify=False) as http:
        async with patience(), sandbox.serve() as origin:
            caller = Caller(http, origin)
            calls = [asyncio.create_task(caller.submit(name)) for name in ("novita", "pixelcut")]
            await eventually(lambda: len(sandbox.tasks) == 2)
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, httpx.TransportError) for end in ends)


async def test_a_late_answer_comes_after_the_task_has_ended(
    caller: Caller, sandbox: Sandbox, listener: Listener
) -> None:
    sandbox.faults = Faults(late_answer_seconds=600)
    call = asyncio.create_task(caller.apixo(listener.url))
    await eventually(lambda: bool(sandbox.tasks))
    await sandbox.tasks[0].ended.wait()
    assert not call.done()
    call.cancel()
    sandbox.faults = Faults(late_answer_seconds=0.05)
    assert (await caller.apixo(listener.url)).json()["data"]["taskId"] == sandbox.tasks[1].id


@pytest.mark.parametrize("provider", ["freepik", "apixo", "novita", "upscayl"])
async def test_a_stuck_task_stays_running(caller: Caller, sandbox: Sandbox, provider: str) -> None:
    sandbox.faults = Faults(stuck=1)
    await caller.submit(provider)
    await sandbox.idle()
    assert sandbox.tasks[0].state == sandbox.stand_ins[provider].running[-1]


async def test_a_failed_pixelcut_task_is_a_refusal_that_costs_nothing(caller: Caller, sandbox: Sandbox) -> None:
    sandbox.faults = Faults(fail=1)
    answer = await caller.pixelcut()
    assert (answer.status_code, answer.json()["error_code"]) == (400, "malformed_image")
    assert [(task.state, task.billed) for task in sandbox.tasks] == [("failed", False)]


async def test_dead_links_are_dead_from_the_start(caller: Caller, sandbox: Sandbox) -> None:
    sandbox.faults = Faults(dead_links=1)
    link = (await caller.pixelcut()).json()["result_url"]
    assert (await caller.http.get(link)).status_code == 410
    link = (await caller.pixelcut()).json()["result_url"]
    assert (await caller.http.get(link)).status_code == 200
    assert [task.facts()["downloads"] for task in sandbox.tasks] == [0, 1]


async def test_status_calls_have_faults_of_their_own(caller: Caller, sandbox: Sandbox) -> None:
    task_id = (await caller.novita()).json()["task_id"]
    await sandbox.idle()
    sandbox.faults = Faults(
        status_bad_gateway=1, status_unavailable=1, status_busy=1, status_server_error=1, status_unreadable=1
    )
    answers = [await caller.novita_status(task_id) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [502, 503, 429, 500, 200, 200]
    assert answers[5].json()["task"]["status"] == "TASK_STATUS_SUCCEED"
    sandbox.faults = Faults(status_reset=1)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await caller.novita_status(task_id)
    assert sandbox.calls("novita", "status") == 7
    assert sandbox.tasks[0].status_calls == 1


async def test_a_provider_can_have_faults_of_its_own(caller: Caller, sandbox: Sandbox) -> None:
    sandbox.faults = Faults(busy=1.0, per_provider={"novita": Faults(busy=0), "freepik": Faults(busy=1)})
    statuses = [(await caller.submit(name)).status_code for name in ("novita", "freepik", "freepik", "apixo", "apixo")]
    assert statuses == [200, 429, 200, 429, 429]


async def test_a_count_at_the_top_is_shared_by_all(caller: Caller, sandbox: Sandbox) -> None:
    sandbox.faults = Faults(busy=2)
    assert [(await caller.submit(name)).status_code for name in ("novita", "apixo", "freepik")] == [429, 429, 200]


async def test_counting_is_exact_under_concurrency(caller: Caller, sandbox: Sandbox) -> None:
    sandbox.faults = Faults(accept_then_reset=5, busy=7)
    ends = await asyncio.gather(*(caller.novita() for _ in range(40)), return_exceptions=True)
    answered = [end for end in ends if isinstance(end, httpx.Response)]
    assert len(ends) - len(answered) == 5
    assert [answer.status_code for answer in answered].count(429) == 7
    assert len(sandbox.accepted("novita")) == 33
    known = {task.id for task in sandbox.accepted("novita")}
    assert {answer.json()["task_id"] for answer in answered if answer.status_code == 200} < known


async def test_faults_and_facts_over_http(caller: Caller, sandbox: Sandbox, listener: Listener) -> None:
    control = f"{caller.origin}/_sandbox"
    set_up = await caller.http.post(f"{control}/faults", json={"lose": 1, "per_provider": {"apixo": {"fail": 1.0}}})
    assert set_up.json()["faults"] == {"lose": 1, "per_provider": {"apixo": {"fail": 1.0}}}
    await caller.novita(listener.url)
    await sandbox.idle()
    await caller.apixo(listener.url)
    await sandbox.idle()
    facts = (await caller.http.get(f"{control}/tasks")).json()
    assert [(item["provider"], item["state"], item["callback_attempts"]) for item in facts["items"]] == [
        ("novita", "TASK_STATUS_SUCCEED", 0),
        ("apixo", "failed", 1),
    ]
    assert facts["calls"]["apixo"] == {"submit": 1, "status": 0}
    assert listener.url not in str(facts)
    struck = (await caller.http.get(f"{control}/faults")).json()["struck"]
    assert struck == {"novita": {"lose": 1}, "apixo": {"fail": 1}}
    assert [
        item["provider"] for item in (await caller.http.get(f"{control}/tasks?provider=apixo")).json()["items"]
    ] == ["apixo"]
    await caller.http.post(f"{control}/reset")
    assert (sandbox.tasks, sandbox.faults, sandbox.calls("apixo")) == ([], Faults(), 0)


@pytest.mark.parametrize(
    "asked",
    [{"lose": 1.5}, {"lose": -1}, {"lose": True}, {"lose": "all"}, {"loose": 1}, {"per_provider": {"x": {}}}, 7],
)
async def test_faults_that_make_no_sense_are_refused(caller: Caller, sandbox: Sandbox, asked: Any) -> None:
    answer = await caller.http.post(f"{caller.origin}/_sandbox/faults", json=asked)
    assert answer.status_code == 400
    assert sandbox.faults == Faults()


def test_a_chance_is_a_count_or_a_probability() -> None:
    assert isinstance(Faults(lose=1).lose, int)
    assert isinstance(Faults(lose=1.0).lose, float)
    assert isinstance(Faults.model_validate_json('{"lose": 1.0}').lose, float)
    with pytest.raises(ValidationError):
        Faults(lose=float("nan"))


async def test_reset_ends_what_runs_and_what_waits(caller: Caller, sandbox: Sandbox, listener: Listener) -> None:
    sandbox.faults = Faults(hang=1, delay_seconds=60)
    waiting = asyncio.create_task(caller.novita(listener.url))
    await eventually(lambda: bool(sandbox.tasks))
    await sandbox.tasks[0].ended.wait()
    await sandbox.reset()
    with pytest.raises(httpx.TransportError):
        await waiting
    await sandbox.idle()
    assert listener.arrivals == []
    assert (await caller.novita()).status_code == 200


async def test_a_sandbox_can_be_served_again(listener: Listener) -> None:
    sandbox = Sandbox(turnaround_seconds=(0, 0))
    for _ in range(2):
        async with sandbox.serve() as origin, httpx.AsyncClient(trust_env=False, verify=False) as http:
            await Caller(http, origin).freepik(listener.url)
            await sandbox.idle()
            assert sandbox.tasks[-1].origin == origin
    assert len(listener.arrivals) == 6


async def test_the_app_runs_without_a_server_too(sandbox: Sandbox) -> None:
    transport = httpx.ASGITransport(sandbox.app)
    async with sandbox.app.router.lifespan_context(sandbox.app), httpx.AsyncClient(transport=transport) as http:
        answer = await Caller(http, "http://sandbox").pixelcut()
        assert answer.json()["result_url"].startswith("http://sandbox/files/")
        sandbox.faults = Faults(accept_then_reset=1)
        with pytest.raises(ConnectionResetError):
            await Caller(http, "http://sandbox").pixelcut()


def test_the_environment_points_a_client_at_the_sandbox(sandbox: Sandbox) -> None:
    environment = sandbox.environment("http://127.0.0.1:8100/")
    assert environment["APIXO_BASE_URL"] == "http://127.0.0.1:8100/apixo/api/v1"
    assert environment["NOVITA_API_KEY"] == "sandbox-novita-key"
    assert {f"{name.upper()}_{what}" for name in PROVIDERS for what in ("BASE_URL", "API_KEY")} < environment.keys()
