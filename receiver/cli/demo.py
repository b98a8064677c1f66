"""
`receiver demo`: the complete flow, on this machine and with nothing but Python.

A sandbox of the five providers, a receiver and a downstream application, on free loopback ports, with a temporary data
directory. One picture goes to all five; the results are kept, delivered as events, and verified.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.cli.serve import Served, served
from receiver.runtime import logs
from receiver.runtime.server import listen, run, running, server
from receiver.settings import load
from submitter import tls
from submitter.errors import CallbackRefused, TaskRefused
from submitter.images import inspect
from submitter.printing import CommandFailed, harmless
from submitter.providers import PROVIDERS
from submitter.sandbox import Faults, Sandbox, test_picture
from submitter.signatures import verify
from submitter.vocabulary import State

_PATIENCE_SECONDS = 90.0
_FAULTS = Faults(lose=0.3, duplicate=0.6, reorder=0.6, delay_seconds=0.2)
_SEED = 11
_WIDE_COLUMNS = 100
"""The least width of a terminal for all columns of the table."""
_EXTENSIONS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}


@dataclass
class _Downstream:
    """The application downstream: it keeps the ids of events that verify, by job and event type."""

    secrets: tuple[str, ...] = ()
    verified: defaultdict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    refused: int = 0

    async def receive(self, request: Request) -> Response:
        body = await request.body()
        try:
            verify(dict(request.headers), body, self.secrets)
        except CallbackRefused:
            self.refused += 1
            return Response(status_code=401)
        event = await request.json()
        self.verified[event["data"]["id"], event["type"]].add(request.headers["webhook-id"])
        return Response(status_code=204)


def demo(
    image: Annotated[Path | None, typer.Option(help="Your own picture instead of a generated one.")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("upscaled"),
    faults: Annotated[bool, typer.Option("--faults", help="Lose, duplicate, delay and reorder callbacks.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running and print the addresses.")] = False,
) -> None:
    """Upscale one picture with all five providers, stood in for on this machine: no key, no account, no cost."""
    logs.set_up("text", level="error")
    raise typer.Exit(run(_demo(image, out, with_faults=faults, keep=keep)))


async def _demo(image: Path | None, out: Path, *, with_faults: bool, keep: bool) -> int:
    console = Console() if sys.stdout.isatty() else Console(width=110)
    with tempfile.TemporaryDirectory(prefix="receiver-demo-") as scratch:
        picture = image or Path(scratch) / "picture.jpg"
        if image is None:
            await asyncio.to_thread(picture.write_bytes, await asyncio.to_thread(test_picture))
        try:
            shape = await asyncio.to_thread(inspect, picture)
        except (OSError, TaskRefused) as exc:
            console.print(f"[red]{escape(harmless(f'{picture}: {exc}'))}[/red]", highlight=False)
            return 2
        downstream = _Downstream()
        sandbox = Sandbox(seed=_SEED, faults=_FAULTS if with_faults else None)
        settings, each = load(
            data_dir=Path(scratch) / "data",
            public_url=None,
            database_url=None,
            api_tokens=(),
            notify_secrets=(),
            secret_keys=(),
            callback_timeout=4.0,
            poll_interval=1.0,
            confirm="unsigned",
            retry_schedule=(0.0, 1.0, 2.0),
        )
        async with (
            _listening(downstream) as notify_url,
            served(settings, each, host="127.0.0.1", port=0, sandbox=sandbox) as live,
        ):
            downstream.secrets = live.receiver.credentials.notify_secrets
            console.print(f"One picture of {shape.width}×{shape.height}, five providers, one receiver at {live.origin}")
            if with_faults:
                console.print("The providers lose, duplicate, delay and reorder their callbacks.")
            show = _Show(console, (shape.width, shape.height), downstream)
            good = await _until_stopped(live, _run(live, picture, notify_url, show, out))
            if keep and not live.ended.done():
                _print_addresses(console, live)
                await asyncio.wait({live.ended})
    return 0 if good else 1


async def _until_stopped(live: Served, work: Coroutine[Any, Any, bool]) -> bool:
    """Return the result of *work*. A signal, which stops the receiver, cancels it like an interrupt of the command."""
    running_work = asyncio.create_task(_without_exit(work))
    stopping = asyncio.create_task(live.receiver.stopping.wait())
    try:
        await asyncio.wait({running_work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    if live.receiver.stopping.is_set():
        running_work.cancel()
        await asyncio.wait({running_work})
        if not running_work.cancelled():
            running_work.exception()  # from calls to a receiver that was stopping
        raise CommandFailed("interrupted", status=130, code="interrupted")
    return running_work.result()


async def _without_exit(work: Coroutine[Any, Any, bool]) -> bool:
    """Return the result of *work*. rich exits when nobody reads its output; from a task, that would stop the loop."""
    try:
        return await work
    except SystemExit as exc:
        raise BrokenPipeError from exc


async def _run(live: Served, picture: Path, notify_url: str, show: _Show, out: Path) -> bool:
    headers = {"authorization": f"Bearer {live.receiver.credentials.api_tokens[0]}"}
    async with httpx.AsyncClient(
        base_url=live.origin, headers=headers, trust_env=False, verify=tls.context(), timeout=30
    ) as client:
        data = await asyncio.to_thread(picture.read_bytes)
        encoded = base64.b64encode(data).decode("ascii")
        with Live(show.table(), console=show.console, refresh_per_second=8) as screen:
            for name in PROVIDERS:
                asked = {"provider": name, "image": {"base64": encoded}, "notify_url": notify_url}
                answer = await client.post("/v1/jobs", json=asked)
                show.put(name, answer.json() if answer.is_success else None, refused=answer.text)
                screen.update(show.table())
            until = time.monotonic() + _PATIENCE_SECONDS
            while not show.done() and time.monotonic() < until and not live.ended.done():
                await asyncio.sleep(0.1)
                for name, job in show.jobs.items():
                    show.put(name, (await client.get(f"/v1/jobs/{job['id']}")).json())
                screen.update(show.table())
        saved = await _save(client, show.jobs, out)
    show.console.print(f"\nThe results are in {out}/" if saved else "")
    for path in saved:
        show.console.print(f"  {path}", highlight=False, soft_wrap=True)
    return show.verdict()


class _Show:
    """The table of results, and the verdict on them."""

    def __init__(self, console: Console, size: tuple[int, int], downstream: _Downstream) -> None:
        self.console = console
        self.jobs: dict[str, dict[str, Any]] = {}
        self._refused: dict[str, str] = {}
        self._size = size
        self._downstream = downstream
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}

    def put(self, name: str, job: dict[str, Any] | None, *, refused: str = "") -> None:
        if job is None:
            self._refused[name] = refused
            return
        self._began.setdefault(name, time.monotonic())
        self.jobs[name] = job
        if State(job["state"]).terminal:
            self._took.setdefault(name, time.monotonic() - self._began[name])

    def done(self) -> bool:
        """All jobs have ended, their images are kept, and their events delivered."""
        return all(
            State(job["state"]).terminal and all(image["kept"] for image in job["images"]) and self._events_written(job)
            for job in self.jobs.values()
        )

    def table(self) -> Table:
        narrow = self.console.width < _WIDE_COLUMNS
        table = Table(box=None, padding=(0, 1 if narrow else 2, 0, 0), header_style="bold")
        for title in ("provider", "state", "settled by", "time", "size in → out", "cost", "webhook"):
            if not narrow or title != "settled by":
                table.add_column(title, no_wrap=True)
        for name in PROVIDERS:
            job = self.jobs.get(name)
            if job is None:
                table.add_row(name, "[red]refused[/red]" if name in self._refused else "…")
                continue
            colour = {"succeeded": "green", "failed": "red", "expired": "red"}.get(job["state"], "yellow")
            cost = job["cost"]
            table.add_row(
                name,
                f"[{colour}]{job['state']}[/{colour}]",
                *(() if narrow else (job["settled_by"] or "",)),
                f"{self._took.get(name, time.monotonic() - self._began[name]):.1f} s",
                self._sizes(job),
                f"{cost['amount']} {cost['unit']}" if cost else "",
                "verified" if self._events_written(job) else "",
            )
        return table

    def verdict(self) -> bool:
        """Print the conclusion; True if every job succeeded once, is kept, and its notification verified."""
        problems = [f"{name}: {text}" for name, text in self._refused.items()]
        for name, job in self.jobs.items():
            if job["state"] != "succeeded":
                why = job["error"]["message"] if job["error"] else "it did not end in time"
                problems.append(f"{name}: {job['state']}: {why}")
            elif not all(image["kept"] for image in job["images"]):
                problems.append(f"{name}: its image was not kept")
            elif not self._events_written(job):
                problems.append(f"{name}: its events were not delivered exactly once")
        if self._downstream.refused:
            problems.append(f"{self._downstream.refused} notifications did not verify")
        if problems or len(self.jobs) < len(PROVIDERS):
            for problem in problems:
                self.console.print(f"[red]{escape(harmless(problem))}[/red]", highlight=False)
            return False
        self.console.print(f"[green]all {len(self.jobs)} jobs succeeded, their webhooks verified[/green]")
        return True

    def _events_written(self, job: dict[str, Any]) -> bool:
        return len(self._downstream.verified[job["id"], f"job.{job['state']}"]) == 1

    def _sizes(self, job: dict[str, Any]) -> str:
        text = f"{self._size[0]}×{self._size[1]}"
        if job["images"] and job["images"][0]["width"]:
            text += f" → {job['images'][0]['width']}×{job['images'][0]['height']}"
        return text


async def _save(client: httpx.AsyncClient, jobs: dict[str, dict[str, Any]], out: Path) -> list[Path]:
    saved = []
    for name, job in jobs.items():
        for n, image in enumerate(job["images"]):
            if not image["kept"]:
                continue
            answer = await client.get(f"/v1/jobs/{job['id']}/images/{n}")
            path = out / f"{name}.{_EXTENSIONS.get(image['content_type'], 'img')}"
            await asyncio.to_thread(_write, path, answer.content)
            saved.append(path)
    return saved


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _print_addresses(console: Console, live: Served) -> None:
    token = live.receiver.credentials.api_tokens[0] if sys.stdout.isatty() else "(shown on a terminal only)"
    for name, value in (
        ("dashboard", f"{live.origin}/  (sign in with the API token; the five results are there)"),
        ("API token", token),
        ("sandbox", live.sandbox or ""),
        ("try", f"curl -H 'Authorization: Bearer TOKEN' {live.origin}/v1/jobs"),
    ):
        console.print(f"[bold]{name:>10}[/bold]  {value}", highlight=False, soft_wrap=True)
    console.print("Ctrl-C ends it.")


@contextlib.asynccontextmanager
async def _listening(downstream: _Downstream) -> AsyncIterator[str]:
    """Run the downstream application on a free loopback port; yields the URL that events are posted to."""
    app = Starlette(routes=[Route("/hooks", downstream.receive, methods=["POST"])])
    listener = listen("127.0.0.1", 0)
    with contextlib.closing(listener):
        async with running(server(app, on_stop=lambda: None), listener):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/hooks"
