"""Both ends of every protocol, written apart from the same pages, understand each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from submitter.client import Submitter
from submitter.errors import AccountRefused, AnswerLost, CallbackRefused, NotSent, ProviderBusy
from submitter.images import inspect
from submitter.providers import build
from submitter.sandbox import API_KEYS, FREEPIK_WEBHOOK_SECRET, Faults, Sandbox
from submitter.vocabulary import Callback, State, Task
from tests.support.listener import Arrival, Listener, listening
from tests.support.sandbox_requests import PICTURE

PROVIDERS = list(API_KEYS)
CALLING = ["freepik", "apixo", "novita"]

EVERY_OPTION: dict[str, dict[str, Any]] = {
    "freepik": {
        "scale_factor": "4x",
        "optimized_for": "films_n_photography",
        "prompt": "a lake at dusk",
        "creativity": -10,
        "hdr": 10,
        "resemblance": 1,
        "fractality": -1,
        "engine": "magnific_sharpy",
    },
    "apixo": {"mode": "image-to-image", "resolution": "2k", "output_format": "png"},
    "novita": {
        "model_name": "RealESRNet_x4plus",
        "scale_factor": 1.5,
        "response_image_type": "webp",
        "enable_nsfw_detection": True,
        "nsfw_detection_level": 2,
    },
    "upscayl": {"model": "natural-max-4x", "scale": 3, "saveImageAs": "webp", "enhanceFace": True},
    "pixelcut": {"scale": 4},
}


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listening({"/a.jpg": PICTURE}) as listener:
        yield listener


@asynccontextmanager
async def meeting(name: str, faults: Faults | None = None) -> AsyncIterator[tuple[Sandbox, Submitter]]:
    sandbox = Sandbox(turnaround_seconds=(0, 0), seed=1, retry_scale=0.001, faults=faults)
    async with sandbox.serve() as origin:
        specific = {"webhook_secrets": [FREEPIK_WEBHOOK_SECRET]} if name == "freepik" else {}
        provider = build(name, api_key=API_KEYS[name], base_url=sandbox.base_urls(origin)[name], **specific)
        async with Submitter(provider, tries=1) as submitter:
            yield sandbox, submitter


def task_for(submitter: Submitter, folder: Path, listener: Listener, options: dict[str, Any] | None = None) -> Task:
    path = folder / "a.jpg"
    path.write_bytes(PICTURE)
    return submitter.provider.task(inspect(path, url=f"{listener.origin}/a.jpg"), options or {})


def as_callback(arrival: Arrival) -> Callback:
    headers = tuple((name.encode(), value.encode()) for name, value in arrival.headers.items())
    return Callback(headers=headers, body=arrival.body, received_at=datetime.now(UTC))


async def fetched(url: str | None) -> int:
    assert url is not None
    async with httpx.AsyncClient(trust_env=False, verify=False) as http:
        return (await http.get(url)).status_code


@pytest.mark.parametrize("options", ["none", "every"])
@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_task_is_sent_followed_and_fetched(name: str, options: str, listener: Listener, tmp_path: Path) -> None:
    async with meeting(name) as (sandbox, submitter):
        given = EVERY_OPTION[name] if options == "every" else {}
        report = await submitter.submit(task_for(submitter, tmp_path, listener, given))
        await sandbox.idle()
        [remote] = sandbox.accepted(name)
        assert remote.unknown_fields == ()
        if submitter.provider.pollable:
            assert (report.remote_id, report.state) == (remote.id, State.RUNNING)
            report = await submitter.poll(remote.id)
        assert report.state is State.SUCCEEDED
        [image] = report.images
        assert image.data is not None or await fetched(image.url) == 200


@pytest.mark.parametrize("name", CALLING)
async def test_its_callbacks_are_verified_and_read(name: str, listener: Listener, tmp_path: Path) -> None:
    async with meeting(name) as (sandbox, submitter):
        report = await submitter.submit(task_for(submitter, tmp_path, listener), listener.url)
        await sandbox.idle()
        reported = []
        for arrival in listener.arrivals:
            submitter.provider.verify(as_callback(arrival), datetime.now(UTC))
            reported.append(submitter.provider.read(as_callback(arrival)))
        last = reported[-1]
        assert last is not None
        assert (last.remote_id, last.state) == (report.remote_id, State.SUCCEEDED)
        assert await fetched(last.images[0].url) == 200


async def test_a_forged_freepik_callback_is_refused(listener: Listener, tmp_path: Path) -> None:
    async with meeting("freepik", Faults(forge=1)) as (sandbox, submitter):
        await submitter.submit(task_for(submitter, tmp_path, listener), listener.url)
        await sandbox.idle()
        [forged] = [arrival for arrival in listener.arrivals if b"/forged/" in arrival.body]
        with pytest.raises(CallbackRefused):
            submitter.provider.verify(as_callback(forged), datetime.now(UTC))


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "pixelcut"])
async def test_a_failed_task_is_read_as_failed(name: str, listener: Listener, tmp_path: Path) -> None:
    async with meeting(name, Faults(fail=1)) as (sandbox, submitter):
        report = await submitter.submit(task_for(submitter, tmp_path, listener))
        await sandbox.idle()
        assert report.remote_id is not None
        report = await submitter.poll(report.remote_id)
        assert report.state is State.FAILED
        assert report.error is not None
        assert report.error.message


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("fault", "raised", "accepted"),
    [
        ("busy", ProviderBusy, 0),
        ("unavailable", ProviderBusy, 0),
        ("bad_key", AccountRefused, 0),
        ("no_credit", AccountRefused, 0),
        ("bad_gateway", AnswerLost, 0),
        ("reset_before", (NotSent, AnswerLost), 0),
        ("accept_then_reset", AnswerLost, 1),
        ("accept_then_bad_gateway", AnswerLost, 1),
        ("unreadable", AnswerLost, 1),
    ],
)
async def test_each_fault_is_understood(
    name: str, fault: str, raised: Any, accepted: int, listener: Listener, tmp_path: Path
) -> None:
    async with meeting(name, Faults(**{fault: 1}, retry_after_seconds=7)) as (sandbox, submitter):
        with pytest.raises(raised) as caught:
            await submitter.submit(task_for(submitter, tmp_path, listener))
        if raised is ProviderBusy:
            assert caught.value.retry_after_seconds == 7
        assert (len(sandbox.accepted(name)), sandbox.calls(name)) == (accepted, 1)
