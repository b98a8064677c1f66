"""The README's snippets, run as they stand; its recipes are in `test_recipes.py`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from receiver.domain.endpoints import Endpoint
from receiver.web.examples import example_data
from submitter.sandbox import API_KEYS, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.testing import sample_event
from tests.support.processes import ROOT, TOKEN, LiveReceiver, live
from tests.support.readme import README, SECRET, snippet


def module(name: str, directory: Path) -> ModuleType:
    path = directory / f"{name}_snippet.py"
    path.write_text(snippet(name))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"the snippet is for {name}, which is not installed, and pip has none")
    return found


async def run(*command: str, directory: Path, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


@asynccontextmanager
async def receiver_and_photo(tmp_path: Path) -> AsyncIterator[LiveReceiver]:
    (tmp_path / "photo.jpg").write_bytes(picture_bytes(160, 120))
    async with live(tmp_path) as (receiver, _):
        yield receiver


async def test_the_sdk_snippet_saves_a_result(tmp_path: Path) -> None:
    async with receiver_and_photo(tmp_path) as receiver:
        (tmp_path / "snippet.py").write_text(snippet("sdk"))
        await run(
            sys.executable,
            "snippet.py",
            directory=tmp_path,
            SUBMITTER_RECEIVER_URL=receiver.url,
            SUBMITTER_TOKEN=TOKEN,
        )
    assert list((tmp_path / "results").iterdir())


async def test_the_curl_snippet_submits_a_job(tmp_path: Path) -> None:
    tool("curl")
    async with receiver_and_photo(tmp_path) as receiver:
        out = await run("sh", "-euc", snippet("curl"), directory=tmp_path, URL=receiver.url, TOKEN=TOKEN)
    assert json.loads(out)["provider"] == "apixo"


async def test_the_snippet_without_a_server_prints_a_link(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(picture_bytes(160, 120))
    (tmp_path / "snippet.py").write_text(snippet("direct"))
    async with Sandbox(seed=7, turnaround_seconds=(0.1, 0.2)).serve() as origin:
        out = await run(
            sys.executable,
            "snippet.py",
            directory=tmp_path,
            NOVITA_API_KEY=API_KEYS["novita"],
            NOVITA_BASE_URL=Sandbox.base_urls(origin)["novita"],
        )
    assert out.startswith("http://127.0.0.1")


async def test_the_fastapi_snippet_takes_signed_events_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    app = module("fastapi", tmp_path).app
    headers, body = sample_event("job.succeeded", SECRET)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.example") as client:
        assert (await client.post("/hooks", content=body, headers=headers)).status_code == 200
        assert (await client.post("/hooks", content=body + b" ", headers=headers)).status_code == 401


async def test_the_embed_snippet_serves_a_receiver_under_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECEIVER_API_TOKENS", TOKEN)
    app = module("embed", tmp_path).app
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.example") as client,
    ):
        assert (await client.get("/upscale/healthz")).json() == {"status": "alive"}
        assert (await client.get("/upscale/v1/jobs")).status_code == 401
        listed = await client.get("/upscale/v1/jobs", headers={"authorization": f"Bearer {TOKEN}"})
        assert listed.json() == {"items": [], "next": None}
        assert (await client.get("/upscale/")).headers["location"] == "./login"


def test_the_unwrap_snippet_takes_signed_events_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    handle: Any = module("unwrap", tmp_path).handle
    headers, body = sample_event("job.succeeded", SECRET)
    assert (handle(headers, body), handle(headers, body + b" ")) == (204, 401)


def test_the_payload_has_the_shape_of_real_ones(endpoint: Endpoint) -> None:
    shown = json.loads(snippet("payload"))
    real = example_data(shown["type"], endpoint, datetime.now(UTC), base_url="https://hooks.example.com")
    assert set(shown) == {"type", "timestamp", "data"}
    assert set(shown["data"]) == set(real)
    assert set(shown["data"]["images"][0]) == set(real["images"][0])


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint("ep_1", "https://example.com/hooks", datetime.now(UTC), ())


def test_every_snippet_is_run_by_a_test() -> None:
    blocks = re.findall(r"(?:<!-- snippet: (\w+) -->\n)?```(?:python|js|go|rust|php|json)\n", README)
    assert "" not in blocks, "give it a name and a test"
    tests = "".join((ROOT / "tests" / name).read_text() for name in ("test_readme.py", "test_recipes.py"))
    assert [name for name in blocks if f'"{name}"' not in tests] == []


def test_the_files_that_the_architecture_names_are_there() -> None:
    section = README.partition("## Architecture")[2].partition("## Measured")[0]
    paths = re.findall(r"`((?:receiver|submitter|tests|deploy)/[\w./-]+\.\w+)`", section)
    assert len(paths) >= 9
    assert [path for path in paths if not (ROOT / path).exists()] == []
