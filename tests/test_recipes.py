"""The README's recipes, as they stand: each serves, takes what a running receiver delivers, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from submitter.sandbox import test_picture as picture_bytes
from submitter.signatures import new_secret
from submitter.testing import sample_event
from tests.support.ports import free_port
from tests.support.processes import ROOT, live, submit
from tests.support.readme import SECRET, snippet
from tests.support.waiting import eventually, patiently

Prepare = Callable[[Path], Awaitable[Sequence[str]]]
"""Writes the recipe into a directory and returns the command that serves it at `/hooks` of `$PORT`."""


# --- Each recipe, as its reader sets it up --------------------------------------------------------------------------


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"the recipe is for {name}, which is not installed, and pip has none")
    return found


async def fetched(directory: Path, *command: str) -> None:
    """Run what a package manager does; skip the test if it can't be reached."""
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=directory, capture_output=True, text=True, check=False, env=environment(directory)
    )
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command[:2])} could not fetch what the recipe imports: {done.stderr.strip()[-200:]}")


async def built(directory: Path, *command: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=directory, capture_output=True, text=True, check=False, env=environment(directory)
    )
    assert done.returncode == 0, done.stderr


async def django(directory: Path) -> Sequence[str]:
    (directory / "urls.py").write_text(snippet("django"))
    (directory / "settings.py").write_text(
        'SECRET_KEY = "for tests"\nDEBUG = False\nALLOWED_HOSTS = ["127.0.0.1"]\nROOT_URLCONF = "urls"\n'
        'MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"]\n'
    )
    options = ("--noreload", "--skip-checks", "--settings", "settings", "--pythonpath", ".")
    return (sys.executable, "-m", "django", "runserver", "127.0.0.1:$PORT", *options)


async def flask(directory: Path) -> Sequence[str]:
    (directory / "app.py").write_text(snippet("flask"))
    return (sys.executable, "-m", "flask", "--app", "app", "run", "--port", "$PORT")


async def queue(directory: Path) -> Sequence[str]:
    (directory / "app.py").write_text(snippet("queue"))
    return (sys.executable, "-m", "uvicorn", "app:app", "--port", "$PORT")


async def nextjs(directory: Path) -> Sequence[str]:
    """Next.js calls a route handler with a web request and sends the web response that it returns; so does this."""
    (directory / "package.json").write_text('{"type": "module"}')
    (directory / "route.js").write_text(snippet("nextjs"))
    (directory / "serve.js").write_text(
        'import { POST } from "./route.js";\n'
        + NODE_SERVER.replace("HANDLE", "const response = await POST(new Request(url, { method, headers, body }));")
    )
    return (tool("node"), "serve.js")


async def node(directory: Path) -> Sequence[str]:
    (directory / "package.json").write_text('{"type": "module"}')
    await fetched(directory, tool("npm"), "install", "--silent", "--no-audit", "--no-fund", "standardwebhooks")
    (directory / "hooks.js").write_text(snippet("node"))
    handle = """
      let event;
      try {
        event = verify(headers, body);
      } catch {}
      const response = new Response(null, { status: event ? 204 : 401 });
      if (event) console.log(event.type, headers["webhook-id"]);
    """
    (directory / "serve.js").write_text(
        'import { verify } from "./hooks.js";\n' + NODE_SERVER.replace("HANDLE", handle)
    )
    return (tool("node"), "serve.js")


async def n8n(directory: Path) -> Sequence[str]:
    """The Code node's text, with the item that a Webhook node with *Raw Body* gives; what it throws is answered 500."""
    (directory / "package.json").write_text('{"type": "module"}')
    (directory / "code.js").write_text(snippet("n8n"))
    handle = """
      const data = { data: body.toString("base64"), mimeType: "application/json" };
      const item = { json: { headers, params: {}, query: {}, body: JSON.parse(body) }, binary: { data } };
      const helpers = { getBinaryDataBuffer: async (_, name) => Buffer.from(item.binary[name].data, "base64") };
      let response;
      try {
        const [{ json }] = await code.call({ helpers }, { first: () => item }, createRequire(import.meta.url));
        console.log(json.type, json.id);
        response = new Response(null, { status: 200 });
      } catch (error) {
        response = new Response(String(error), { status: 500 });
      }
    """
    (directory / "serve.js").write_text(
        'import { readFileSync } from "node:fs";\nimport { createRequire } from "node:module";\n'
        "const Code = Object.getPrototypeOf(async function () {}).constructor;\n"
        'const code = new Code("$input", "require", readFileSync("code.js", "utf8"));\n'
        + NODE_SERVER.replace("HANDLE", handle)
    )
    return (tool("node"), "serve.js")


NODE_SERVER = """
import { createServer } from "node:http";

createServer(async (incoming, outgoing) => {
  const chunks = [];
  for await (const chunk of incoming) chunks.push(chunk);
  const { method, headers } = incoming;
  const url = `http://${headers.host}${incoming.url}`;
  const body = Buffer.concat(chunks);
  HANDLE
  outgoing.writeHead(response.status);
  outgoing.end(await response.text());
}).listen(Number(process.env.PORT), "127.0.0.1");
"""


async def go(directory: Path) -> Sequence[str]:
    program = tool("go")
    (directory / "main.go").write_text(snippet("go"))
    await built(directory, program, "mod", "init", "example.com/hooks")
    await fetched(directory, program, "mod", "tidy")
    await built(directory, program, "build", "-o", "hooks", ".")
    return (str(directory / "hooks"),)


RUST_PROFILE = """
[profile.dev]
codegen-units = 1
debug = false
debug-assertions = false
incremental = false

[profile.dev.build-override]
codegen-units = 1
"""
"""Half a minute of compiling is long enough."""


async def rust(directory: Path) -> Sequence[str]:
    program = tool("cargo")
    await built(directory, program, "init", "--quiet", "--name", "hooks")
    packages = ("axum", "serde_json", "standardwebhooks", "tokio", "--features", "tokio/full")
    await fetched(directory, program, "add", "--quiet", *packages)
    with (directory / "Cargo.toml").open("a") as manifest:
        manifest.write(RUST_PROFILE)
    (directory / "src" / "main.rs").write_text(snippet("rust"))
    await fetched(directory, program, "fetch", "--quiet")
    await built(directory, program, "build", "--quiet", "--offline")
    return (str(directory / "target" / "debug" / "hooks"),)


async def php(directory: Path) -> Sequence[str]:
    (directory / "hooks.php").write_text(snippet("php"))
    return (tool("php"), "-S", "127.0.0.1:$PORT", "hooks.php")


# --- The tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "refusal"),
    [
        (django, 401),
        (flask, 401),
        (queue, 401),
        (nextjs, 401),
        (node, 401),
        (n8n, 500),
        pytest.param(go, 401, marks=pytest.mark.slow),
        pytest.param(rust, 401, marks=pytest.mark.slow),
        (php, 401),
    ],
)
async def test_a_recipe_takes_what_a_receiver_delivers_and_refuses_the_rest(
    prepare: Prepare, refusal: int, tmp_path: Path
) -> None:
    directory = tmp_path / "recipe"
    directory.mkdir()
    command = await prepare(directory)
    async with serving(command, directory) as url:
        event_id = await delivered(url, tmp_path)
        if prepare is not queue:  # its worker prints, below
            await eventually(lambda: f"job.succeeded {event_id}" in printed(directory), what=lambda: printed(directory))
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            for why, headers, body in forgeries():
                answer = await client.post(url, headers=headers, content=body)
                assert answer.status_code == refusal, why


async def test_the_queue_keeps_an_event_once_and_works_it_off_after_its_worker_died(tmp_path: Path) -> None:
    command = await queue(tmp_path)
    headers, body = sample_event("job.succeeded", SECRET)
    async with serving(command, tmp_path) as url, httpx.AsyncClient(trust_env=False, timeout=30) as client:
        for _ in range(2):
            assert (await client.post(url, headers=headers, content=body)).status_code == 202
    rows = "SELECT id, done FROM inbox"
    with contextlib.closing(sqlite3.connect(tmp_path / "inbox.db")) as database:
        assert database.execute(rows).fetchall() == [(headers["webhook-id"], 0)]  # on disk, its server is gone
        async with running((sys.executable, "app.py"), tmp_path):
            await eventually(lambda: database.execute(rows).fetchall() == [(headers["webhook-id"], 1)])
    assert printed(tmp_path).count(f"job.succeeded {headers['webhook-id']}") == 1


def forgeries() -> Iterator[tuple[str, Mapping[str, str], bytes]]:
    """Forgeries that no handler may accept: the reason, the headers, the body."""
    now = datetime.now(UTC)
    headers, body = sample_event("job.succeeded", SECRET, now=now)
    yield "another secret", *sample_event("job.succeeded", new_secret(), now=now)
    yield "an old delivery", *sample_event("job.succeeded", SECRET, now=now - timedelta(hours=1))
    yield "a changed body", headers, body + b" "
    for left_out in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        yield f"no {left_out}", {name: value for name, value in headers.items() if name != left_out}, body


async def delivered(url: str, tmp_path: Path) -> str:
    """The id of an event that a running receiver has delivered to *url* about a job that it ran."""
    async with live(tmp_path) as (receiver, _), receiver.client() as client:
        asked = {"url": url, "event_types": ["job.succeeded"], "secret": SECRET}
        endpoint = (await client.post("/v1/endpoints", json=asked)).json()["id"]
        await submit(client, "freepik", picture_bytes(64, 48))
        found: list[dict[str, str]] = []

        async def arrived() -> bool:
            answer = await client.get("/v1/deliveries", params={"endpoint": endpoint})
            found[:] = answer.json()["items"]
            return [delivery["state"] for delivery in found] == ["delivered"]

        await eventually(arrived, what=lambda: f"the recipe did not take it: {found}")
        return found[0]["event_id"]


def environment(directory: Path) -> dict[str, str]:
    # rustup's toolchains belong to the user, even where HOME is another directory.
    rustup = {"RUSTUP_HOME": str(Path(pwd.getpwuid(os.getuid()).pw_dir) / ".rustup")}
    return {**rustup, **os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "WEBHOOK_SECRET": SECRET}


def printed(directory: Path) -> str:
    return (directory / "printed").read_text().replace('"', "")  # Rust's, of JSON values


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str], directory: Path, *, port: int = 0
) -> AsyncIterator[asyncio.subprocess.Process]:
    with (directory / "printed").open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *(part.replace("$PORT", str(port)) for part in command),
            cwd=directory,
            env={**environment(directory), "PORT": str(port)},
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await patiently(process.wait())


@contextlib.asynccontextmanager
async def serving(command: Sequence[str], directory: Path) -> AsyncIterator[str]:
    """The URL of the recipe's handler, once its server takes connections."""
    port = free_port()
    async with running(command, directory, port=port) as process:

        async def answers() -> bool:
            assert process.returncode is None, printed(directory)
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(answers, what=lambda: printed(directory))
        yield f"http://127.0.0.1:{port}/hooks"
