"""`submitter.testing`, as an application's own tests use it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytest_plugins = ["pytester"]

TESTS = """
    import asyncio

    from submitter import JobEvent, State
    from submitter.sandbox import test_picture as picture
    from submitter.testing import Faults, sample_event
    from submitter.webhooks import unwrap


    def test_a_job_is_done(receiver, tmp_path):
        with receiver.client() as client:
            (path,) = client.upscale("freepik", picture(64, 64), out=tmp_path, timeout=120)
            assert path.stat().st_size
            assert [task.provider for task in receiver.sandbox.accepted()] == ["freepik"]


    def test_faults_on_demand(receiver):
        receiver.faults = Faults(lose=1.0)
        with receiver.client() as client:
            job = client.wait(client.submit("novita", picture(64, 64)), timeout=120)
        assert (job.state, job.settled_by) == (State.SUCCEEDED, "poll")


    def test_faults_are_gone_and_asyncio_works_too(receiver):
        assert receiver.faults == Faults()

        async def use():
            async with receiver.async_client() as client:
                return await client.wait(await client.submit("pixelcut", picture(64, 64)), timeout=120)

        assert asyncio.run(use()).succeeded


    def test_a_sample(receiver):
        headers, body = sample_event("job.failed", receiver.notify_secret)
        assert isinstance(unwrap(headers, body, receiver.notify_secret), JobEvent)
"""


@pytest.mark.slow
def test_the_fixture_is_a_running_receiver_with_faults_on_demand(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RECEIVER_API_TOKENS", "a token of this user")
    monkeypatch.setenv("FREEPIK_API_KEY", "a key of this user")
    Path(".env").write_text("RECEIVER_DATABASE_URL=sqlite:///must-not-be-made.db\n")
    pytester.makepyfile(TESTS)
    pytester.runpytest_subprocess("-p", "submitter.testing.plugin", "-p", "no:asyncio", "-W", "error").assert_outcomes(
        passed=4
    )
    assert not os.path.exists("must-not-be-made.db")
