"""`submitter send`, `wait` and `providers`, as processes against a live receiver."""

from pathlib import Path

import pytest

from submitter.commands.connection import CommandFailed
from submitter.commands.options import parse_options
from submitter.commands.results import stem_of
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.live import live
from tests.submitter.commanding import submitter


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


async def test_what_is_refused_or_fails_is_told_with_its_reason_and_status_1(tmp_path: Path) -> None:
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
        without = await submitter(receiver, "providers", SUBMITTER_TOKEN="")
        assert (without.status, "SUBMITTER_TOKEN" in without.err) == (2, True)
        wrong = await submitter(receiver, "providers", SUBMITTER_TOKEN="another-token")
        assert (wrong.status, "RECEIVER_API_TOKENS" in wrong.err) == (2, True)


async def test_providers_are_listed_with_their_options_and_queues(tmp_path: Path) -> None:
    async with live(tmp_path, environment={"PIXELCUT_API_KEY": ""}) as (receiver, _):
        found = {one["name"]: one for one in (await submitter(receiver, "providers", "--json")).json}
        assert list(found) == ["freepik", "apixo", "novita", "upscayl", "pixelcut"]
        assert "saveImageAs" in found["upscayl"]["options"]["properties"]
        assert found["novita"]["queue"] == {
            "length": 0,
            "done_in_seconds": 0.0,
            "done_at": found["novita"]["queue"]["done_at"],
        }
        shown = (await submitter(receiver, "providers")).out
        assert "pixelcut" in shown and "saveImageAs" in shown


def test_option_values_are_json_where_they_are_json() -> None:
    given = ("scale=4", "on=true", "prompt=a cat, sitting", "empty=", 'deep={"a": [1]}', "eq=a=b", "nan=NaN")
    assert parse_options(given) == {
        "scale": 4,
        "on": True,
        "prompt": "a cat, sitting",
        "empty": "",
        "deep": {"a": [1]},
        "eq": "a=b",
        "nan": "NaN",
    }
    with pytest.raises(CommandFailed, match="name=value"):
        parse_options(["scale"])


@pytest.mark.parametrize(
    ("image", "stem"),
    [
        (Path("a/cat one.JPG"), "cat one"),
        ("https://example.com/x/b%20c.png?sig=1", "b c"),
        ("https://example.com/", "image"),
        (Path("..hidden..jpg"), "hidden"),
        ("https://example.com/a%2Fb.png", "b"),
    ],
)
def test_results_are_named_after_their_image(image: Path | str, stem: str) -> None:
    assert stem_of(image) == stem
