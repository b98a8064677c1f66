"""
How many callbacks a second are taken in, durably: `python -m tests.bench ingest [--rounds 5] [--rows 1000000]`.

`--processes N` runs ours in N processes: the last settles, the others answer. `--database postgresql` puts it on a
PostgreSQL server from the wheel, which waits for its disk; the rows come there by `receiver transfer`.

In one run, interleaved: a Starlette route that does nothing; a receiver that commits once per request; ours, with all
checks, logs (JSON, to a file) and metrics on, `synchronous=FULL`, on a database that already holds a million rows of
evidence. Callbacks are signed, of distinct running jobs, over 64 keep-alive connections; the load comes from a process
of its own on the same machine. Ratios to the first are what travels from machine to machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from receiver.domain.tokens import Tokens
from receiver.store import tables
from receiver.store.database import open_database
from receiver.store.statements import Fetch, alone
from submitter.signatures import new_secret, sign
from tests.bench import filling
from tests.bench.load import write_requests
from tests.support.postgresql import running_postgresql

_KEY = "a-key-for-the-benchmark"
_SECRET = "a-webhook-secret-for-the-benchmark"


class Bench:
    """The three servers, and a directory that outlives the run so that the big database is built once."""

    def __init__(self, directory: Path, rows: int, *, processes: int = 1, database_url: str | None = None) -> None:
        self.directory = directory
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
            print(f"filling the database: {have} of {self.rows} rows of evidence are there")
            filling.fill(self.database, evidence=self.rows)
        filling.settle_old_images(self.database)
        for old in self.directory.glob("naive.db*"):
            old.unlink()
        if self.database_url is not None:
            print("transferring the rows to PostgreSQL", flush=True)
            subprocess.run(
                [*_OURS, "transfer", "--to", self.database_url],
                env=self.environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            self.environment |= {
                "RECEIVER_DATABASE_URL": self.database_url,
                "RECEIVER_API_TOKENS": "a-token-for-the-benchmark",
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

    # --- The load -----------------------------------------------------------------------------------------------------

    def callbacks(self, name: str, count: int) -> Path:
        """A file of *count* requests; for ours each is of a job of its own, which runs and awaits it."""
        jobs = (
            self.running_jobs(count)
            if name == "ours"
            else [(f"job_{n:026}", secrets.token_hex(18)) for n in range(count)]
        )
        path = self.directory / f"{name}.requests"
        write_requests(path, [self._request(job, task) for job, task in jobs])
        return path

    def _request(self, job: str, task: str) -> bytes:
        message, now = f"msg_{secrets.token_hex(12)}", int(time.time())
        url = f"http://127.0.0.1:{self.ports['nothing']}/results/{task}"
        body = filling.callback_body(task, "COMPLETED", url)
        signature = sign(_SECRET.encode(), message, now, body)
        headers = [*filling.callback_headers(message, str(now), signature), ("content-length", str(len(body)))]
        head = "".join(f"{key}: {value}\r\n" for key, value in headers)
        target = f"/callbacks/freepik/{self.tokens.callback(job, 'freepik')}"
        return f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + body

    def load(self, name: str, count: int, *, connections: int = 64, rate: float | None = None) -> dict[str, Any]:
        path = self.callbacks(name, count)
        command = [sys.executable, "-m", "tests.bench.load", str(self.ports[name]), str(path), str(connections)]
        done = subprocess.run(
            [*command, *([str(rate)] if rate else [])], env=self.environment, check=True, capture_output=True
        )
        result: dict[str, Any] = json.loads(done.stdout)
        if result["statuses"] != {"200": count}:
            raise RuntimeError(f"{name} answered {result['statuses']}")
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
    parser = argparse.ArgumentParser(prog="python -m tests.bench ingest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="evidence rows that are there before")
    parser.add_argument("--burst", type=int, default=8000, help="callbacks in one burst of ours")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite", help="what ours runs on")
    parser.add_argument("--processes", type=int, default=1, help="processes of ours: all but the last answer")
    schema = hashlib.sha256(Path(tables.__file__).read_bytes()).hexdigest()[:8]
    cached = Path(tempfile.gettempdir()) / f"receiver-bench-ingest-{schema}"
    parser.add_argument("--directory", type=Path, default=cached, help="kept, so that the database is filled once")
    given = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        url = None
        if given.database == "postgresql":
            url = stack.enter_context(running_postgresql(durable=True)).url
        _run(Bench(given.directory, given.rows, processes=given.processes, database_url=url), given.rounds, given.burst)


def _run(bench: Bench, rounds: int, burst: int) -> None:
    bench.prepare()
    for name in bench.ports:
        bench.start(name)
    try:
        for name in bench.ports:
            bench.wait_ready(name)
        _report(bench, rounds, burst)
    finally:
        bench.stop()


def _report(bench: Bench, rounds: int, burst: int) -> None:
    found: dict[str, list[float]] = {
        "nothing": [],
        "naive": [],
        "acknowledged": [],
        "settled": [],
        "p50": [],
        "p99": [],
    }
    for name, count in (("nothing", 4000), ("naive", 400)):
        bench.acknowledged(name, count)
    bench.ours(1000)
    for number in range(rounds):
        found["nothing"].append(bench.acknowledged("nothing", 2 * burst))
        found["naive"].append(bench.acknowledged("naive", max(burst // 8, 100)))
        acknowledged, settled = bench.ours(burst)
        found["acknowledged"].append(acknowledged)
        found["settled"].append(settled)
        steady = bench.offered(1000, 4)
        found["p50"].append(steady["p50"] * 1000)
        found["p99"].append(steady["p99"] * 1000)
        print(f"round {number + 1}: " + ", ".join(f"{name} {values[-1]:.5g}" for name, values in found.items()))
    killed = bench.processes == 1  # of several, the parent is no part of what is measured
    waiting, ready, drained = bench.recovery(burst) if killed else (0, 0.0, 0.0)
    rows = filling.evidence_rows(bench.database)
    base, naive = statistics.median(found["nothing"]), statistics.median(found["naive"])

    def row(title: str, values: list[float], ratio: Callable[[float], str]) -> None:
        print(f"| {title} | {statistics.median(values):,.0f} | {min(values):,.0f} to {max(values):,.0f} |", end="")
        print(f" {ratio(statistics.median(values))} |")

    where = "SQLite" if bench.database_url is None else "PostgreSQL"
    print(f"\n{where}, {bench.processes} of our processes, {rows:,} rows of evidence, 64 connections,", end=" ")
    print(f"median of {rounds}, {os.cpu_count()} cores\n")
    print("| | per second | spread | of a route that does nothing |\n|---|---|---|---|")
    row("a route that does nothing", found["nothing"], lambda value: "1")
    row("one commit per request", found["naive"], lambda value: f"{value / base:.3f}")
    row(
        "ours, acknowledged",
        found["acknowledged"],
        lambda value: f"{value / base:.3f}, {value / naive:.1f} times one commit per request",
    )
    row("ours, sustained to the settled job", found["settled"], lambda value: f"{value / base:.3f}")
    p50, p99 = found["p50"], found["p99"]
    print(
        f"\nAt an offered 1,000 callbacks/s: p50 {statistics.median(p50):.1f} ms, p99 {statistics.median(p99):.1f} ms"
        f" ({min(p99):.1f} to {max(p99):.1f})."
    )
    if killed:
        print(
            f"SIGKILL after a burst of {burst:,}, {waiting:,} of them unread: ready after {ready:.1f} s,"
            f" drained after {drained:.1f} s."
        )


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
