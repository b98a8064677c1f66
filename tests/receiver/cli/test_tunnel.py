"""`receiver tunnel`: real `ssh -R` to a real server, a stand-in for cloudflared, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import httpx
import psutil
import pytest

from receiver.cli.tunnel_process import by_cloudflared, by_ssh
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support import forking
from tests.support.cli import bare_environment, receiver_command
from tests.support.ports import free_port
from tests.support.processes import TOKEN, provider_environment, submit, wait_for_state
from tests.support.waiting import eventually, patiently

# What cloudflared prints, with another name at each start; it writes down its process id and stays.
CLOUDFLARED = """#!/bin/sh
printf x >> "$TUNNEL_STANDIN/starts"
echo $$ > "$TUNNEL_STANDIN/pid"
echo "$@" > "$TUNNEL_STANDIN/arguments"
n=$(wc -c < "$TUNNEL_STANDIN/starts" | tr -d ' ')
cat >&2 <<END
2026-08-01T10:00:00Z INF Thank you for trying Cloudflare Tunnel. (https://developers.cloudflare.com/cloudflare-one/)
2026-08-01T10:00:00Z INF Requesting new quick Tunnel on trycloudflare.com...
2026-08-01T10:00:02Z INF +--------------------------------------------------------------------------------------------+
2026-08-01T10:00:02Z INF |  Your quick Tunnel has been created! Visit it at (it may take some time to be reachable):  |
2026-08-01T10:00:02Z INF |  https://some-quick-words-$n.trycloudflare.com                                              |
2026-08-01T10:00:02Z INF +--------------------------------------------------------------------------------------------+
2026-08-01T10:00:03Z INF Registered tunnel connection connIndex=0 protocol=quic
END
trap '' TERM
while :; do sleep 1; done
"""


# One whose own child outlives it, and holds its output open.
FORKING = CLOUDFLARED.partition("trap")[0] + "sleep 1000 &\nwait\n"


@dataclass
class Tunnelled:
    """A `receiver tunnel` of its own process."""

    process: forking.Forked
    log_path: Path
    client: httpx.AsyncClient

    def lines(self, event: str) -> list[dict[str, Any]]:
        logged = [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]
        return [line for line in logged if line["event"] == event]

    async def reported(self, event: str, times: int = 1) -> dict[str, Any]:
        await eventually(lambda: len(self.lines(event)) >= times, what=self.log_path.read_text)
        return self.lines(event)[times - 1]


@contextlib.asynccontextmanager
async def tunnelled(tmp_path: Path, sandbox: Sandbox, *arguments: str, **environment: str) -> AsyncIterator[Tunnelled]:
    port = free_port()
    log_path = tmp_path / "log"
    async with sandbox.serve() as origin:
        settings = {
            **provider_environment(Sandbox.base_urls(origin)),
            "RECEIVER_API_TOKENS": TOKEN,
            "RECEIVER_ALLOW_NETWORKS": "127.0.0.0/8",
            **environment,
        }
        with log_path.open("wb") as log, open(os.devnull, "wb") as nowhere:
            process = await forking.fork(
                "receiver",
                "tunnel",
                "--port",
                str(port),
                *arguments,
                environment=bare_environment(**settings),
                directory=tmp_path,
                out=nowhere,
                err=log,
            )
        headers = {"authorization": f"Bearer {TOKEN}"}
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=30
            ) as client:
                yield Tunnelled(process, log_path, client)
        finally:
            if process.returncode is None:
                process.terminate()
            await patiently(process.wait())


def is_alive(pid: int) -> bool:
    """A dead process that nobody has collected is dead."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which `cloudflared` is the stand-in."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "cloudflared"
    program.write_text(CLOUDFLARED)
    program.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}", "TUNNEL_STANDIN": str(directory)}


def pid_of(stand_in: dict[str, str]) -> int:
    return int((Path(stand_in["TUNNEL_STANDIN"]) / "pid").read_text())


async def test_new_jobs_follow_the_changed_name_of_a_quick_tunnel(tmp_path: Path, stand_in: dict[str, str]) -> None:
    sandbox = Sandbox(seed=1, turnaround_seconds=(60, 60))
    async with tunnelled(tmp_path, sandbox, "--patience", "0.1", **stand_in) as live:
        first = await live.reported("tunnel_unreachable")
        assert first["public_url"] == "https://some-quick-words-1.trycloudflare.com"
        assert first["remedy"]
        job = await submit(live.client, "freepik", picture_bytes(160, 120))
        await wait_for_state(live.client, job["id"], "running")
        os.kill(pid_of(stand_in), signal.SIGKILL)
        second = await live.reported("tunnel_unreachable", 2)
        assert second["public_url"] == "https://some-quick-words-2.trycloudflare.com"
        later = await submit(live.client, "freepik", picture_bytes(160, 120))
        await wait_for_state(live.client, later["id"], "running")
        urls = [task.callback_url or "" for task in sandbox.accepted("freepik")]
        assert urls[0].startswith("https://some-quick-words-1.trycloudflare.com/callbacks/freepik/")
        assert urls[1].startswith("https://some-quick-words-2.trycloudflare.com/callbacks/freepik/")
        arguments = (Path(stand_in["TUNNEL_STANDIN"]) / "arguments").read_text().split()
        assert arguments[:-1] == ["tunnel", "--no-autoupdate", "--url"]
        async with httpx.AsyncClient(base_url=arguments[-1], trust_env=False) as outside:
            assert (await outside.get("/healthz")).status_code == 200
            for host in ("some-quick-words-2.trycloudflare.com", "localhost"):
                for path in ("/metrics", "/readyz"):
                    assert (await outside.get(path, headers={"host": host})).status_code == 404
        assert (await live.client.get("/metrics")).status_code == 200
        assert not any(url.rpartition("/")[2] in live.log_path.read_text() for url in urls)


async def test_the_end_of_a_child_is_noticed_though_a_child_of_its_own_lives_on(
    tmp_path: Path, stand_in: dict[str, str]
) -> None:
    (Path(stand_in["TUNNEL_STANDIN"]) / "cloudflared").write_text(FORKING)
    sandbox = Sandbox(seed=1)
    async with tunnelled(tmp_path, sandbox, "--patience", "0.1", **stand_in) as live:
        first = await live.reported("tunnel_unreachable")
        assert "receiver serve" not in first["remedy"]
        left_behind = psutil.Process(pid_of(stand_in)).children()
        assert left_behind
        os.kill(pid_of(stand_in), signal.SIGTERM)
        assert (await live.reported("tunnel_ended"))["said"]
        second = await live.reported("tunnel_unreachable", 2)
        assert second["public_url"] == "https://some-quick-words-2.trycloudflare.com"
        assert not any(is_alive(child.pid) for child in left_behind)


async def test_the_child_gets_none_of_our_secrets(tmp_path: Path, stand_in: dict[str, str]) -> None:
    secrets = {f"{name}_API_KEY": f"key-of-{name}" for name in ("FREEPIK", "APIXO", "NOVITA", "UPSCAYL", "PIXELCUT")}
    secrets |= {"FREEPIK_WEBHOOK_SECRET": "a-webhook-secret", "RECEIVER_SECRET_KEYS": "a-signing-key"}
    secrets |= {"AWS_SECRET_ACCESS_KEY": "somebody-elses", "DATABASE_URL": "postgresql://user:password@host/db"}
    async with tunnelled(tmp_path, Sandbox(seed=1), "--patience", "0.1", **stand_in, **secrets) as live:
        await live.reported("tunnel_unreachable")
        given = psutil.Process(pid_of(stand_in)).environ()
    assert not set(given.values()) & {*secrets.values(), TOKEN}
    assert not [name for name in given if name.startswith(("RECEIVER_", "SUBMITTER_")) or name in secrets]
    assert {"PATH", "TUNNEL_STANDIN"} <= set(given)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
async def test_no_child_outlives_its_parent(tmp_path: Path, stand_in: dict[str, str], number: signal.Signals) -> None:
    async with tunnelled(tmp_path, Sandbox(seed=1), "--patience", "0.1", **stand_in) as live:
        await live.reported("tunnel_unreachable")
        child = pid_of(stand_in)
        assert is_alive(child)
        live.process.send_signal(number)
        status = await patiently(live.process.wait())
        assert status == (-signal.SIGKILL if number is signal.SIGKILL else 0)
        await eventually(lambda: not is_alive(child))


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed; .ci/run installs it")
async def test_callbacks_come_through_ssh_and_after_a_cut_by_the_new_port(tmp_path: Path) -> None:
    connections: list[asyncssh.SSHServerConnection] = []

    class Host(asyncssh.SSHServer):
        def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
            connections.append(connection)

        def begin_auth(self, username: str) -> bool:
            return False

        def server_requested(self, listen_host: str, listen_port: int) -> bool:
            return True

    key = asyncssh.generate_private_key("ssh-ed25519")
    host = await asyncssh.create_server(Host, "127.0.0.1", 0, server_host_keys=[key])
    options = {
        "Port": str(host.get_port()),
        "UserKnownHostsFile": str(tmp_path / "known"),
        "StrictHostKeyChecking": "accept-new",
    }
    arguments = [part for name, value in options.items() for part in ("--ssh-option", f"{name}={value}")]
    sandbox = Sandbox(seed=1, turnaround_seconds=(0.1, 0.2))
    async with host, tunnelled(tmp_path, sandbox, "--ssh", "somebody@127.0.0.1", *arguments) as live:
        urls = []
        for life in (1, 2):
            url = (await live.reported("tunnel_open", life))["public_url"]
            urls.append(url)
            job = await submit(live.client, "freepik", picture_bytes(160, 120))
            done = await wait_for_state(live.client, job["id"])
            assert (done["state"], done["settled_by"]) == ("succeeded", "callback")
            assert (sandbox.accepted("freepik")[-1].callback_url or "").startswith(f"{url}/callbacks/")
            if life == 1:
                connections[-1].abort()
                assert (await live.reported("tunnel_ended"))["program"] == "ssh"
        assert urls[0] != urls[1]


async def test_without_any_way_the_three_ways_are_reported(tmp_path: Path) -> None:
    environment = bare_environment(PATH=str(tmp_path), LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""))
    done = await receiver_command("tunnel", environment=environment, directory=tmp_path)
    assert done.status == 2
    for way in ("cloudflared", "--ssh", "--public-url"):
        assert way in done.err


async def test_your_own_public_url_is_used_and_checked_from_outside(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    sandbox = Sandbox(seed=1, turnaround_seconds=(60, 60))
    async with tunnelled(tmp_path, sandbox, "--public-url", f"{url}/below") as live:
        reported = await live.reported("tunnel_unreachable")
        assert reported["public_url"] == f"{url}/below"
        job = await submit(live.client, "freepik", picture_bytes(160, 120))
        await wait_for_state(live.client, job["id"], "running")
        assert (sandbox.accepted("freepik")[0].callback_url or "").startswith(f"{url}/below/callbacks/")


def test_urls_are_read_from_what_the_programs_print() -> None:
    cloudflared, ssh = by_cloudflared(8000), by_ssh("me@host.example", 8000)
    lines = {
        "INF |  https://gentle-river-foo.trycloudflare.com  |": "https://gentle-river-foo.trycloudflare.com",
        'ERR failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": dial tcp': None,
        "see https://www.cloudflare.com/website-terms/": None,
    }
    assert {line: cloudflared.url_in(line) for line in lines} == lines
    assert ssh.url_in("Allocated port 40123 for remote forward to 127.0.0.1:8000") == "http://host.example:40123"
    assert ssh.url_in("Warning: remote port forwarding failed for listen port 1") is None
    assert by_ssh("h", 8000, remote_port=9000).fixed_url == "http://h:9000"
    behind = by_ssh("h", 8000, remote_port=9000, public_url="https://hooks.example.com")
    assert behind.fixed_url == "https://hooks.example.com"
    assert "127.0.0.1:9000:127.0.0.1:8000" in behind.program
