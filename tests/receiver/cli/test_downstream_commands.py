"""`receiver endpoints`, `deliveries` and `replay`, as processes beside a running receiver."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from submitter.errors import CallbackRefused
from submitter.sandbox import test_picture as picture_bytes
from submitter.signatures import verify
from tests.support.cli import receiver_command
from tests.support.processes import LiveReceiver, live, submit, wait_for_state
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually


async def command(receiver: LiveReceiver, *args: str, status: int = 0) -> Any:
    """Run a command; return its output with `--json`, or its text if it fails."""
    environment, directory = receiver.full_environment(), receiver.data_dir.parent
    done = await receiver_command(*args, "--json", environment=environment, directory=directory)
    assert done.status == status, done.out + done.err
    return done.json if status == 0 else done.out + done.err


async def test_an_endpoint_is_managed_from_the_shell(tmp_path: Path) -> None:
    subscriber = Subscriber({"/hook": [500]})
    async with subscriber.serve() as origin, live(tmp_path) as (receiver, _), receiver.client() as client:
        refused = await command(receiver, "endpoints", "add", "https://169.254.169.254/", status=1)
        assert "must not be reached" in refused
        made = await command(receiver, "endpoints", "add", f"{origin}/hook", "--event", "job.succeeded")
        assert made["event_types"] == ["job.succeeded"]
        assert "secret" not in await command(receiver, "endpoints", "show", made["id"])
        await client.patch(f"/v1/endpoints/{made['id']}", json={"description": "a\x1b]0;title\x07\nurl  b\x9b2J"})
        environment, directory = receiver.full_environment(), receiver.data_dir.parent
        readable = await receiver_command("endpoints", "show", made["id"], environment=environment, directory=directory)
        assert r"a\x1b]0;title\x07\nurl  b\x9b2J" in readable.out
        assert all(char.isprintable() for char in readable.out.replace("\n", ""))

        job = await submit(client, "freepik", picture_bytes(64, 64))
        await wait_for_state(client, job["id"], "succeeded")
        await eventually(lambda: len(subscriber.seen) == 4)
        (lost,) = (await command(receiver, "deliveries", "list", "--undelivered", "--endpoint", made["id"]))["items"]
        shown = await command(receiver, "deliveries", "show", lost["id"])
        assert [attempt["status"] for attempt in shown["attempts"]] == [500] * 4
        subscriber.answers = {}

        assert (await command(receiver, "replay", "--endpoint", made["id"], "--dry-run"))["replayed"] == 1
        assert len(subscriber.seen) == 4
        assert (await command(receiver, "replay", "--endpoint", made["id"]))["replayed"] == 1
        await eventually(lambda: len(subscriber.seen) == 5)
        assert subscriber.seen[4].id == lost["event_id"]
        verify(subscriber.seen[4].headers, subscriber.seen[4].body, made["secret"])

        rotated = await command(receiver, "endpoints", "rotate-secret", made["id"], "--overlap", "60")
        until = datetime.fromisoformat(rotated["old_secrets_sign_until"])
        assert timedelta(seconds=30) < until - datetime.now(UTC) <= timedelta(seconds=60)
        assert "old_secrets_sign_until" not in await command(receiver, "endpoints", "show", made["id"])

        async def signed_by_the_new_one() -> bool:
            """A server learns of a change by another process within a second."""
            tried = await command(receiver, "endpoints", "test", made["id"])
            assert (tried["state"], tried["example"]) == ("delivered", True)
            verify(subscriber.seen[-1].headers, subscriber.seen[-1].body, made["secret"])
            with contextlib.suppress(CallbackRefused):
                verify(subscriber.seen[-1].headers, subscriber.seen[-1].body, rotated["secret"])
                return True
            return False

        await eventually(signed_by_the_new_one)

        assert not (await command(receiver, "endpoints", "disable", made["id"]))["enabled"]
        assert "disabled" in await command(receiver, "replay", lost["id"], status=1)
        assert (await command(receiver, "endpoints", "enable", made["id"]))["enabled"]
        since = await command(receiver, "replay", "--since", "2026-01-01", "--dry-run")
        assert since["again"] == 1
        assert len((await command(receiver, "endpoints", "list"))["items"]) == 1
        await command(receiver, "endpoints", "remove", made["id"])
        assert (await command(receiver, "endpoints", "list"))["items"] == []
        unknown = await command(receiver, "deliveries", "list", "--event", "nope", status=2)
        assert "there is no event 'nope'; use one of job.queued, " in unknown
        assert "name a delivery" in await command(receiver, "replay", status=2)
