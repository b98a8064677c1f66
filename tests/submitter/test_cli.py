"""`submitter send`, `wait` and `providers`, as processes against a live receiver."""

import hashlib
import re
import signal
from pathlib import Path

import pytest

from submitter.commands.connection import CommandFailed
from submitter.commands.options import parse_options, parse_value
from submitter.commands.results import stem_of
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.balancer import Balancer
from tests.support.processes import live, wait_for_state
from tests.support.submitter_cli import started, submitter
from tests.support.waiting import eventually


async def test_an_image_is_sent_waited_for_and_saved_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "cat one.jpg").write_bytes(picture_bytes(160, 120))
    async with live(tmp_path) as (receiver, sandbox):
        options = ("--option", "scale=2", "--option", "saveImageAs=png", "--option", "enhanceFace=true")
        done = await submitter(
            receiver, "send", "cat one.jpg", "--provider", "upscayl", *options, "--out", "out", "--json"
        )
        assert done.status == 0, done.err
        assert done.json["state"] == "succeeded"
        assert done.json["cost"] == {"amount": "10", "unit": "credits"}
        assert done.json["saved"] == ["out/cat one.png"]
        assert (tmp_path / "out" / "cat one.png").read_bytes().startswith(b"\x89PNG")
        (task,) = sandbox.accepted("upscayl")
        assert str(task.options["scale"]) == "2"

        sent = await submitter(receiver, "send", "cat one.jpg", "--provider", "apixo")
        job_id, state = sent.out.split()[0], sent.out.split()[1].rstrip(",")
        assert (sent.status, state) == (0, "queued")
        assert (await submitter(receiver, "wait", job_id)).status == 0


async def test_what_is_refused_or_fails_is_reported_with_its_reason_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    sandbox = Sandbox(seed=1, turnaround_seconds=(0.05, 0.1), faults=Faults(fail=1.0))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        refused = await submitter(receiver, "send", "cat.jpg", "--provider", "upscayl", "--option", "scale=20")
        assert refused.status == 1
        assert "options.scale" in refused.err
        assert sandbox.calls("upscayl") == 0
        failed = await submitter(receiver, "send", "cat.jpg", "--provider", "novita", "--wait")
        assert failed.status == 1
        assert "failed" in failed.err
        assert (await submitter(receiver, "send", "no.jpg", "--provider", "novita")).status == 2
        without = await submitter(receiver, "providers", SUBMITTER_TOKEN="", RECEIVER_DATA_DIR="nowhere")
        assert (without.status, "SUBMITTER_TOKEN" in without.err) == (2, True)
        wrong = await submitter(receiver, "providers", SUBMITTER_TOKEN="another-token")
        assert (wrong.status, "RECEIVER_API_TOKENS" in wrong.err) == (2, True)


async def test_providers_are_listed_with_their_options_and_queues(tmp_path: Path) -> None:
    async with live(tmp_path, environment={"PIXELCUT_API_KEY": ""}) as (receiver, _):
        found = {item["name"]: item for item in (await submitter(receiver, "providers", "--json")).json}
        assert list(found) == ["freepik", "apixo", "novita", "upscayl", "pixelcut"]
        assert "saveImageAs" in found["upscayl"]["options"]["properties"]
        assert found["novita"]["queue"] == {
            "length": 0,
            "done_in_seconds": 0.0,
            "done_at": found["novita"]["queue"]["done_at"],
        }
        shown = (await submitter(receiver, "providers")).out
        assert "pixelcut" in shown and "saveImageAs" in shown


def test_option_values_are_json_where_they_are_json_and_no_text_is_wanted() -> None:
    given = ("scale_factor=4x", "prompt=42", "creativity=3", "engine=automatic")
    assert parse_options("freepik", given) == {
        "scale_factor": "4x",
        "prompt": "42",
        "creativity": 3,
        "engine": "automatic",
    }
    for text, value in (
        ("a cat, sitting", "a cat, sitting"),
        ("", ""),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("true", "true"),
    ):
        assert parse_value("freepik", "prompt", text) == value
    assert parse_value("upscayl", "enhanceFace", "true") is True
    assert parse_value("freepik", "passthrough", '{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("provider", "option", "says"),
    [
        ("freepik", "scale", "name=value"),
        ("freepik", "scale_factor=3x", "must be '2x', '4x', '8x' or '16x'"),
        ("freepik", "scale_facto=2x", "is scale_factor meant?"),
        ("freepik", "colour=red", "use one of "),
        ("novita", "scale_factor=9", "must be at most 4"),
        ("upscayl", "enhanceFace=maybe", "must be true or false"),
        ("pixelcut", "scale=2.5", "must be a whole number"),
    ],
)
def test_a_wrong_option_is_refused_in_plain_words(provider: str, option: str, says: str) -> None:
    with pytest.raises(CommandFailed, match=re.escape(says)) as caught:
        parse_options(provider, [option])
    assert "Input should" not in str(caught.value) and "Extra inputs" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "stem"),
    [
        (Path("a/cat one.JPG"), "cat one"),
        ("https://example.com/x/b%20c.png?sig=1", "b c"),
        ("https://example.com/", "image"),
        (Path("..hidden..jpg"), "hidden"),
        (Path("x" * 251 + ".png"), "x" * 191 + "-" + hashlib.sha256(b"x" * 251).hexdigest()[:8]),
        ("HTTP://example.com/b.png", "b"),
        ("https://example.com/a%2Fb.png", "b"),
    ],
)
def test_results_are_named_after_their_image(image: Path | str, stem: str) -> None:
    assert stem_of(image) == stem


@pytest.mark.parametrize("out", ["cat.jpg", "cat.jpg/deeper", "/proc/not-to-be-made"])
async def test_where_results_can_not_be_saved_nothing_is_sent(tmp_path: Path, out: str) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    async with live(tmp_path) as (receiver, sandbox), receiver.client() as client:
        paid = ("--provider", "pixelcut")
        for command in (("send", "cat.jpg", *paid), ("batch", "*.jpg", *paid), ("wait", "job_1")):
            done = await submitter(receiver, *command, "--out", out)
            assert (done.status, done.out) == (2, "")
            assert done.err.startswith(f"submitter: --out {out} ") and done.err.count("\n") == 1, done.err
        assert (await client.get("/v1/jobs")).json()["items"] == []
        assert sandbox.calls("pixelcut") == 0
    assert (tmp_path / "cat.jpg").read_bytes().startswith(b"\xff\xd8")


async def test_a_result_that_can_not_be_saved_names_its_job_and_is_fetched_without_paying_again(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    for suffix in ("jpg", "png"):
        (tmp_path / "my out" / f"cat.{suffix}").mkdir(parents=True)
    async with live(tmp_path) as (receiver, sandbox), receiver.client() as client:
        done = await submitter(receiver, "send", "cat.jpg", "--provider", "pixelcut", "--out", "my out")
        (job,) = (await client.get("/v1/jobs")).json()["items"]
        assert done.status == 1
        assert "Traceback" not in done.err
        assert f"`submitter wait {job['id']} --out 'my out'`" in done.err
        for suffix in ("jpg", "png"):
            (tmp_path / "my out" / f"cat.{suffix}").rmdir()
        fetched = await submitter(receiver, "wait", job["id"], "--out", "my out", "--json")
        assert fetched.status == 0, fetched.err
        (saved,) = fetched.json["saved"]
        assert (tmp_path / saved).is_file()
        (tmp_path / "other" / Path(saved).name).mkdir(parents=True)
        again = await submitter(receiver, "wait", job["id"], "--out", "other")
        assert (again.status, "Traceback" in again.err) == (1, False)
        assert f"`submitter wait {job['id']} --out other`" in again.err
        assert len(sandbox.accepted()) == 1
    assert not list(tmp_path.rglob(".*.part"))


async def test_a_command_that_is_interrupted_while_it_waits_names_its_job(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(picture_bytes(160, 120))
    sandbox = Sandbox(seed=1, turnaround_seconds=(600, 600))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        between = Balancer([receiver.url])
        async with between.serve() as url:
            arguments = ("send", "cat.jpg", "--provider", "novita", "--wait")
            running = await started(receiver, *arguments, SUBMITTER_RECEIVER_URL=url)
            await eventually(lambda: any("/v1/jobs/job_" in path for _, path in between.requested))
            (job,) = (await client.get("/v1/jobs")).json()["items"]
            await wait_for_state(client, job["id"], "running")
            running.send_signal(signal.SIGINT)
            _, err = await running.communicate()
        assert running.returncode == 130
        assert f"go on with `submitter wait {job['id']}`" in err.decode()
