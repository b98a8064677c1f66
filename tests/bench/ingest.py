"""
Callbacks per second that are recorded durably: `python -m tests.bench ingest [--rounds 5] [--rows 1000000]`.

`--bytes 20000` makes the bodies larger than a provider's 200 bytes.
`--processes N` runs ours in N processes: the last settles, the others answer. `--database postgresql` puts it on a
PostgreSQL server from the wheel, which waits for its disk; the rows come there by `receiver transfer`.

In one run, interleaved: a Starlette route that does nothing; a receiver that commits once per request; ours, with all
checks, logs (JSON, to a file) and metrics on, `synchronous=FULL`, on a database that already holds a million rows of
evidence. Callbacks are signed, of distinct running jobs, over 64 keep-alive connections; the load comes from a process
of its own on the same machine. Ratios to the first are what travels from machine to machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from receiver.domain.tokens import Tokens
from receiver.store import tables
from receiver.store.database import open_database
from receiver.store.statements import Fetch, alone
from submitter.signatures import new_secret, sign
from tests.bench import filling
from tests.bench.figures import Figure, parser, present
from tests.bench.load import write_requests
from tests.support.postgresql import running_postgresql

TOKEN = "a-token-for-the-benchmark"
_KEY = "a-key-for-the-benchmark"
_SECRET = "a-webhook-secret-for-the-benchmark"


class Bench:
    """The three servers, and a directory that outlives the run so that the big database is built once."""

    def __init__(
        self, directory: Path, rows: int, *, processes: int = 1, database_url: str | None = None, body: int = 0
    ) -> None:
        self.directory = directory
        self.body = body
        self.processes = processes
        self.database_url = database_url
        self.rows = rows
        self.database = directory / "data" / "receiver.db"
        self.ports = {name: _free_port() for name in ("nothing", "naive", "ours")}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.tokens = Tokens([_KEY])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RECEIVER_", "FREEPIK_"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(Path(__file__).parent.parent.parent),
            "RECEIVER_DATA_DIR": str(directory / "data"),
            "RECEIVER_SECRET_KEYS": _KEY,
            "RECEIVER_API_TOKENS": TOKEN,
            "RECEIVER_ALLOW_NETWORKS": "127.0.0.0/8",
            "RECEIVER_LOG_FORMAT": "json",
            "FREEPIK_WEBHOOK_SECRET": _SECRET,
            "FREEPIK_API_KEY": "not-a-key",
            "FREEPIK_BASE_URL": f"http://127.0.0.1:{self.ports['nothing']}",
        }

    # --- The servers --------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        subprocess.run([*_OURS, "migrate"], env=self.environment, check=True, stdout=subprocess.DEVNULL)
        have = filling.evidence_rows(self.database)
        if have < self.rows:
            print(f"filling the database: {have} of {self.rows} rows of evidence are there", file=sys.stderr)
            filling.fill(self.database, evidence=self.rows)
        filling.settle_old_images(self.database)
        for old in self.directory.glob("naive.db*"):
            old.unlink()
        if self.database_url is not None:
            print("transferring the rows to PostgreSQL", file=sys.stderr)
            subprocess.run(
                [*_OURS, "transfer", "--to", self.database_url],
                env=self.environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            self.environment |= {
                "RECEIVER_DATABASE_URL": self.database_url,
                "RECEIVER_NOTIFY_SECRETS": new_secret(),
            }

    def start(self, name: str) -> None:
        port = str(self.ports[name])
        if name == "ours":
            command = [*_OURS, "serve", "--port", port, "--processes", str(self.processes)]
        else:
            command = [sys.executable, "-m", "tests.bench.peers", name, port, str(self.directory)]
        with (self.directory / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def wait_ready(self, name: str) -> None:
        until = time.monotonic() + 60
        while True:
            try:
                path = "/readyz" if name == "ours" else "/"
                with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}{path}", timeout=5):
                    return
            except urllib.error.HTTPError as exc:
                if name != "ours" and exc.code == 404:
                    return
            except OSError:
                pass
            if time.monotonic() > until:
                raise RuntimeError(f"{name} did not start")
            time.sleep(0.02)

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(20)

    @contextlib.contextmanager
    def serving(self, *names: str) -> Iterator[None]:
        """These servers, ready, as long as the block runs."""
        try:
            for name in names:
                self.start(name)
            for name in names:
                self.wait_ready(name)
            yield
        finally:
            self.stop()

    def subscribe(self, url: str) -> None:
        """Make an endpoint with 64 slots for the jobs that succeed."""
        asked = json.dumps({"url": url, "event_types": ["job.succeeded"], "concurrency": 64}).encode()
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['ours']}/v1/endpoints", asked, headers)
        with urllib.request.urlopen(request, timeout=10):
            pass

    # --- The load -----------------------------------------------------------------------------------------------------

    def callbacks(self, name: str, count: int, jobs: Sequence[tuple[str, str]] | None = None) -> Path:
        """A file of *count* requests; for ours each is of a job of its own, which runs and awaits it."""
        if jobs is None and name == "ours":
            jobs = self.running_jobs(count)
        elif jobs is None:
            jobs = [(f"job_{n:026}", secrets.token_hex(18)) for n in range(count)]
        path = self.directory / f"{name}.requests"
        write_requests(path, [self._request(job, task) for job, task in jobs])
        return path

    def _request(self, job: str, task: str) -> bytes:
        message, now = f"msg_{secrets.token_hex(12)}", int(time.time())
        url = f"http://127.0.0.1:{self.ports['nothing']}/results/{task}"
        body = filling.callback_body(task, "COMPLETED", url, self.body)
        signature = sign(_SECRET.encode(), message, now, body)
        headers = [*filling.callback_headers(message, str(now), signature), ("content-length", str(len(body)))]
        head = "".join(f"{key}: {value}\r\n" for key, value in headers)
        target = f"/callbacks/freepik/{self.tokens.callback(job, 'freepik')}"
        return f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + body

    def load(
        self, name: str, count: int, *, rate: float | None = None, jobs: Sequence[tuple[str, str]] | None = None
    ) -> dict[str, Any]:
        result = self.run_load(self.ports[name], self.callbacks(name, count, jobs), rate=rate)
        if result["statuses"] != {"200": count}:
            raise RuntimeError(f"{name} answered {result['statuses']}")
        return result

    def run_load(self, port: int, path: Path, *, rate: float | None = None) -> dict[str, Any]:
        """Return the report of the load generator, which sends the requests of a file over 64 connections."""
        command = [sys.executable, "-m", "tests.bench.load", str(port), str(path), "64", *([str(rate)] if rate else [])]
        done = subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def running_jobs(self, count: int) -> list[tuple[str, str]]:
        """(job id, task id) of fresh running jobs."""
        if self.database_url is None:
            return filling.add_running(self.database, count)
        rows = filling.running_jobs(count)
        asyncio.run(_append(self.database_url, rows))
        return [(row[0], row[6]) for row in rows]

    def unread(self) -> int:
        if self.database_url is not None:
            return asyncio.run(_unread(self.database_url))
        with sqlite3.connect(self.database, timeout=30) as db:
            return int(db.execute("SELECT count(*) FROM evidence WHERE read_at IS NULL").fetchone()[0])

    def wait_drained(self) -> None:
        until = time.monotonic() + 120
        while self.unread():
            if time.monotonic() > until:
                raise RuntimeError("evidence stays unread")
            time.sleep(0.02)

    # --- What is measured ---------------------------------------------------------------------------------------------

    def acknowledged(self, name: str, count: int) -> float:
        return count / float(self.load(name, count)["seconds"])

    def ours(self, count: int) -> tuple[float, float]:
        """(acknowledged, settled) per second of one burst."""
        result = self.load("ours", count)
        began = time.monotonic()
        self.wait_drained()
        return count / result["seconds"], count / (result["seconds"] + time.monotonic() - began)

    def offered(self, rate: float, seconds: float) -> dict[str, Any]:
        result = self.load("ours", int(rate * seconds), rate=rate)
        self.wait_drained()
        return result

    def recovery(self, count: int) -> tuple[int, float, float]:
        """(what was unread when it was killed, seconds to ready, seconds to drained)."""
        self.load("ours", count)
        self.running["ours"].send_signal(signal.SIGKILL)
        self.running["ours"].wait()
        waiting = self.unread()
        began = time.monotonic()
        self.start("ours")
        self.wait_ready("ours")
        ready = time.monotonic() - began
        self.wait_drained()
        return waiting, ready, time.monotonic() - began


def main(argv: list[str]) -> None:
    options = parser("ingest", __doc__)
    options.add_argument("--rows", type=int, default=1_000_000, help="evidence rows that are there before")
    options.add_argument("--burst", type=int, default=8000, help="callbacks in one burst of ours")
    options.add_argument("--bytes", type=int, default=0, help="bytes of each body at least (as Freepik sends it: 200)")
    options.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite", help="what ours runs on")
    options.add_argument("--processes", type=int, default=1, help="processes of ours: all but the last answer")
    schema = hashlib.sha256(Path(tables.__file__).read_bytes()).hexdigest()[:8]
    cached = Path(tempfile.gettempdir()) / f"receiver-bench-ingest-{schema}"
    options.add_argument("--directory", type=Path, default=cached, help="kept, so that the database is filled once")
    given = options.parse_args(argv)
    with contextlib.ExitStack() as stack:
        url = None
        if given.database == "postgresql":
            url = stack.enter_context(running_postgresql(durable=True)).url
        bench = Bench(given.directory, given.rows, processes=given.processes, database_url=url, body=given.bytes)
        bench.prepare()
        stack.enter_context(bench.serving(*bench.ports))
        figures = _measured(bench, given.rounds, given.burst)
    where = "SQLite" if bench.database_url is None else "PostgreSQL"
    rows = filling.evidence_rows(bench.database)
    conditions = f"{where}, {bench.processes} of our processes, {rows:,} rows of evidence, 64 connections"
    if given.bytes:
        conditions += f", bodies of {given.bytes:,} bytes"
    present("ingest", conditions, figures, as_json=given.json)


def _measured(bench: Bench, rounds: int, burst: int) -> list[Figure]:
    nothing = Figure("a route that does nothing", "requests/s")
    naive = Figure("one commit per request", "callbacks/s", baseline=nothing.what)
    acknowledged = Figure("ours, acknowledged", "callbacks/s", baseline=nothing.what)
    settled = Figure("ours, sustained to the settled job", "callbacks/s", baseline=nothing.what)
    p50 = Figure("acknowledged at an offered 1,000/s, p50", "ms")
    p99 = Figure("acknowledged at an offered 1,000/s, p99", "ms")
    figures = [nothing, naive, acknowledged, settled, p50, p99]
    for name, count in (("nothing", 4000), ("naive", 400)):
        bench.acknowledged(name, count)
    bench.ours(1000)
    for number in range(rounds):
        nothing.values.append(bench.acknowledged("nothing", 2 * burst))
        naive.values.append(bench.acknowledged("naive", max(burst // 8, 100)))
        for figure, value in zip((acknowledged, settled), bench.ours(burst), strict=True):
            figure.values.append(value)
        steady = bench.offered(1000, 4)
        p50.values.append(steady["p50"] * 1000)
        p99.values.append(steady["p99"] * 1000)
        shown = ", ".join(f"{each.what} {each.values[-1]:.5g}" for each in figures)
        print(f"round {number + 1}: {shown}", file=sys.stderr)
    if bench.processes == 1:  # of several, the parent is no part of what is measured
        waiting, ready, drained = bench.recovery(burst)
        figures += [
            Figure(f"SIGKILL after a burst of {burst:,}, {waiting:,} of them unread: ready after", "s", [ready]),
            Figure("then settled all after", "s", [drained]),
        ]
    return figures


async def _append(url: str, rows: list[tuple[Any, ...]]) -> None:
    database = await open_database(url)
    try:
        await database.append("jobs", filling.JOB, rows)
    finally:
        await database.close()


async def _unread(url: str) -> int:
    database = await open_database(url)
    try:
        ((count,),) = await database.read(alone(Fetch("SELECT count(*) FROM evidence WHERE read_at IS NULL")))
        return int(count)
    finally:
        await database.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_OURS = [sys.executable, "-c", "from receiver.cli import main; main()"]
