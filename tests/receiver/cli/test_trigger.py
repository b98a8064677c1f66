"""`receiver trigger`: every provider and every state, into a receiver that runs beside its sandbox."""

from __future__ import annotations

from pathlib import Path

from tests.support.cli import Done, bare_environment, receiver_command
from tests.support.engines import secrets_of
from tests.support.sandboxed import sandboxed

# provider, the state's name as a person writes it: the verdict on the evidence, the job's state afterwards
STATES = {
    ("freepik", "created"): ("believed", "running"),
    ("freepik", "in_progress"): ("believed", "running"),
    ("freepik", "completed"): ("believed", "succeeded"),
    ("freepik", "failed"): ("believed", "failed"),
    ("apixo", "success"): ("hint", "succeeded"),
    ("apixo", "failed"): ("hint", "failed"),
    ("novita", "succeed"): ("hint", "succeeded"),
    ("novita", "TASK_STATUS_FAILED"): ("hint", "failed"),
}


async def trigger(directory: Path, *arguments: str) -> Done:
    return await receiver_command("trigger", *arguments, environment=bare_environment(), directory=directory)


async def test_every_state_of_every_provider_that_calls_back_is_shown_with_what_became_of_it(tmp_path: Path) -> None:
    async with sandboxed(tmp_path):
        for (provider, state), (verdict, became) in STATES.items():
            done = await trigger(tmp_path, provider, state, "--json")
            assert done.status == 0, done.err
            reported = done.json
            assert reported["sent"]["state"].casefold().endswith(state.casefold()), reported
            assert (reported["answered"], reported["verdict"], reported["job"]["is"]) == (200, verdict, became), (
                reported
            )
        token = secrets_of(tmp_path / "data")["api_token"]
        again = await trigger(tmp_path, "novita", "succeed", "--job", reported["job"]["id"])
        assert again.status == 0, again.err
        assert "evidence: late" in again.out or "evidence: hint" in again.out or "evidence: duplicate" in again.out
        assert f"{reported['job']['id']}: failed → failed" in again.out
        signed = await trigger(tmp_path, "freepik", "completed")
        assert "evidence: signature verified\n" in signed.out, signed.out
        assert "/callbacks/" not in again.out
        assert token not in again.out
        wrong = await trigger(tmp_path, "apixo", "pending")
        assert (wrong.status, wrong.err.strip()) == (2, "receiver: state must be one of success, failed")
        mixed = await trigger(tmp_path, "apixo", "failed", "--job", reported["job"]["id"])
        assert (mixed.status, mixed.err.strip()) == (1, f"receiver: {reported['job']['id']} is a job of novita")


async def test_providers_without_callbacks_and_a_missing_sandbox_are_reported(tmp_path: Path) -> None:
    for arguments, said in {
        ("upscayl", "processed"): "upscayl sends no callbacks: its jobs are polled",
        ("pixelcut", "done"): "pixelcut sends no callbacks: it answers the submit call with the result",
        ("nobody", "done"): "there is no provider 'nobody'",
        ("freepik", "completed"): "no `receiver serve --sandbox` runs with the data directory data",
    }.items():
        done = await trigger(tmp_path, *arguments)
        assert done.status == (1 if arguments == ("freepik", "completed") else 2)
        assert said in done.err
    assert not (tmp_path / "data").exists()


async def test_a_callback_is_changed_doubled_forged_or_lost_on_demand(tmp_path: Path) -> None:
    async with sandboxed(tmp_path):
        strange = await trigger(tmp_path, "freepik", "in_progress", "--override", "status=ON_THE_MOON", "--json")
        assert (strange.json["answered"], strange.json["verdict"], strange.json["job"]["is"]) == (
            *(200, "believed"),
            "running",
        )
        unreadable = await trigger(tmp_path, "freepik", "completed", "--override", "generated=7", "--json")
        assert (unreadable.json["answered"], unreadable.json["verdict"]) == (200, "unreadable")
        doubled = await trigger(tmp_path, "freepik", "completed", "--faults", "replay,duplicate", "--json")
        assert (doubled.json["sent"]["times"], doubled.json["job"]["is"]) == (3, "succeeded")
        forged = await trigger(tmp_path, "freepik", "failed", "--faults", "forge", "--json")
        assert (forged.json["answered"], forged.json["job"]["is"]) == (401, forged.json["job"]["was"])
        lost = await trigger(tmp_path, "freepik", "failed", "--faults", "lose", "--json")
        assert (lost.json["sent"]["times"], lost.json["answered"]) == (0, None)


async def test_what_is_wrong_is_refused_before_there_is_a_job(tmp_path: Path) -> None:
    async with sandboxed(tmp_path):
        for arguments in (
            *((), ("freepik",), ("freepik", "done"), ("freepik", "failed", "--faults", "sleep")),
            *(("freepik", "failed", "--override", "status"), ("freepik", "failed", "--override", "a..b=1")),
        ):
            done = await trigger(tmp_path, *arguments)
            assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), arguments
        listed = await trigger(tmp_path, "--list")
        assert "created, in_progress, completed, failed" in listed.out
        jobs = await receiver_command("jobs", "list", "--json", environment=bare_environment(), directory=tmp_path)
        assert jobs.json["items"] == []
