"""The README's snippets, run as they stand."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
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

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
README = (ROOT / "README.md").read_text()


def snippet(name: str) -> str:
    """The code block that follows the marker *name*."""
    found = re.search(rf"<!-- snippet: {name} -->\n```\w+\n(.*?)```\n", README, re.DOTALL)
    assert found is not None, f"the README has no snippet {name}"
    return found[1]


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
        pytest.skip(f"the snippet is for {name}, which is not on this machine and not in pip")
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


async def test_the_fastapi_snippet_takes_signed_events_only(tmp_path: Path) -> None:
    app = module("fastapi", tmp_path).app
    headers, body = sample_event("job.succeeded", SECRET)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.example") as client:
        assert (await client.post("/hooks", content=body, headers=headers)).status_code == 200
        assert (await client.post("/hooks", content=body + b" ", headers=headers)).status_code == 401


def test_the_unwrap_snippet_takes_signed_events_only(tmp_path: Path) -> None:
    handle: Any = module("unwrap", tmp_path).handle
    headers, body = sample_event("job.succeeded", SECRET)
    assert (handle(headers, body), handle(headers, body + b" ")) == (204, 401)


async def test_the_node_snippet_takes_signed_events_only(tmp_path: Path) -> None:
    tool("node")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    command = [tool("npm"), "install", "--silent", "standardwebhooks"]
    installed = await asyncio.to_thread(
        subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if installed.returncode != 0:
        pytest.skip("npm could not install standardwebhooks, which the snippet imports")
    (tmp_path / "hooks.js").write_text(snippet("node"))
    headers, body = sample_event("job.succeeded", SECRET)
    (tmp_path / "main.js").write_text(
        f"import {{ handle }} from './hooks.js';\nconst headers = {json.dumps(headers)};\n"
        f"const body = {json.dumps(body.decode())};\nconsole.log(handle(headers, body).type);\n"
        "try { handle(headers, body + ' '); console.log('taken'); } catch { console.log('refused'); }\n"
    )
    out = await run("node", "main.js", directory=tmp_path, WEBHOOK_SECRET=SECRET)
    assert out.split() == ["job.succeeded", "refused"]


async def test_the_go_snippet_takes_signed_events_only(tmp_path: Path) -> None:
    go = tool("go")
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "hooks.go").write_text(snippet("go"))
    (tmp_path / "main.go").write_text(GO_PROGRAM)
    await run(go, "mod", "init", "example.com/app", directory=tmp_path)
    fetched = await asyncio.to_thread(
        subprocess.run, [go, "mod", "tidy"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if fetched.returncode != 0:
        pytest.skip("go could not fetch the module that the snippet imports")
    await run(go, "build", "-o", "app", ".", directory=tmp_path)
    headers, body = sample_event("job.succeeded", SECRET)  # only now: a signature is good for five minutes
    given = {"HEADERS": json.dumps(headers), "BODY": body.decode(), "SECRET": SECRET}
    assert (await run(str(tmp_path / "app"), directory=tmp_path, **given)).split() == ["true", "false"]


GO_PROGRAM = """package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"example.com/app/hooks"
)

func main() {
	given, headers := map[string]string{}, http.Header{}
	if err := json.Unmarshal([]byte(os.Getenv("HEADERS")), &given); err != nil {
		panic(err)
	}
	for name, value := range given {
		headers.Set(name, value)
	}
	body := []byte(os.Getenv("BODY"))
	fmt.Println(hooks.Verify(os.Getenv("SECRET"), headers, body) == nil)
	fmt.Println(hooks.Verify(os.Getenv("SECRET"), headers, append(body, ' ')) == nil)
}
"""


def test_the_payload_has_the_shape_of_real_ones(endpoint: Endpoint) -> None:
    shown = json.loads(snippet("payload"))
    real = example_data(shown["type"], endpoint, datetime.now(UTC), base_url="https://hooks.example.com")
    assert set(shown) == {"type", "timestamp", "data"}
    assert set(shown["data"]) == set(real)
    assert set(shown["data"]["images"][0]) == set(real["images"][0])


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint("ep_1", "https://example.com/hooks", datetime.now(UTC), ())


def test_every_python_snippet_is_run_by_a_test() -> None:
    blocks = re.findall(r"(?:<!-- snippet: (\w+) -->\n)?```(?:python|js|go|json)\n", README)
    assert "" not in blocks, "give it a name and a test"
    here = Path(__file__).read_text()
    assert [name for name in blocks if f'"{name}"' not in here] == []


def test_the_files_that_the_architecture_names_are_there() -> None:
    section = README.partition("## Architecture")[2].partition("## Measured")[0]
    paths = re.findall(r"`((?:receiver|submitter|tests|deploy)/[\w./-]+\.\w+)`", section)
    assert len(paths) >= 9
    assert [path for path in paths if not (ROOT / path).exists()] == []
