"""`submitter batch`: interrupted, it goes on; nothing is sent twice."""

import json
import os
import resource
import signal
from collections import Counter
from pathlib import Path

import pytest

from submitter.commands.connection import CommandFailed
from submitter.commands.journal import Journal
from submitter.commands.sources import items_of
from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.hostile_shell import files_of, in_shell
from tests.support.processes import live
from tests.support.submitter_cli import pictures, started, submitter
from tests.support.waiting import eventually


async def test_200_images_interrupted_twice_end_as_200_results_and_200_tasks(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 200, picture_bytes(96, 64))
    sandbox = Sandbox(seed=5, turnaround_seconds=(0.1, 0.4))
    command = ("batch", str(tmp_path / "in"), "--provider", "freepik", "--out", str(tmp_path / "out"), "--json")
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        for number, at in ((signal.SIGINT, 40), (signal.SIGKILL, 110)):
            running = await started(receiver, *command)
            await eventually(lambda at=at: len(sandbox.accepted()) >= at)  # type: ignore[misc]
            running.send_signal(number)
            await running.communicate()
            assert running.returncode != 0
            assert len(sandbox.accepted()) < 200
        done = await submitter(receiver, *command)
        assert done.status == 0, done.err
        assert done.json["succeeded"] == 200
        assert len(sandbox.accepted()) == 200
        results = sorted(path.name for path in (tmp_path / "out").glob("photo-*"))
        assert results == [f"photo-{n:03}.jpg" for n in range(200)]
        once_more = await submitter(receiver, *command)
        assert once_more.json["succeeded"] == 200
        assert len(sandbox.accepted()) == 200


async def test_failures_are_reported_with_their_reasons_and_sent_anew_only_when_asked(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 5, picture_bytes(96, 64))
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    sandbox = Sandbox(seed=5, turnaround_seconds=(0.05, 0.1), faults=Faults(fail=2))
    command = ("batch", str(tmp_path / "in"), "--provider", "apixo", "--out", str(tmp_path / "out"))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        first = await submitter(receiver, *command, "--json")
        assert first.status == 1
        states = Counter(item["state"] for item in first.json["items"])
        assert states == {"succeeded": 3, "failed": 2, "refused": 1}
        assert first.json["cost"] == [{"amount": "0.05", "unit": "USD"}]
        shown = await submitter(receiver, *command)
        assert shown.status == 1
        assert "3" in shown.out and "not_an_image" in shown.out and "0.05 USD" in shown.out
        assert len(sandbox.accepted()) == 5
        again = await submitter(receiver, *command, "--again", "--json")
        assert again.json["succeeded"] == 5
        assert len(sandbox.accepted()) == 7


async def test_results_that_can_not_be_saved_are_reported_and_fetched_by_the_next_run(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 2, picture_bytes(96, 64))
    for suffix in ("jpg", "png"):
        (tmp_path / "out" / f"photo-000.{suffix}").mkdir(parents=True)
    command = ("batch", str(tmp_path / "in"), "--provider", "pixelcut", "--out", str(tmp_path / "out"), "--json")
    async with live(tmp_path) as (receiver, sandbox):
        first = await submitter(receiver, *command)
        assert first.status == 1
        lost, saved = first.json["items"]
        assert (lost["state"], saved["state"]) == ("unsaved", "succeeded")
        assert lost["job"] in lost["reason"] and "sends nothing twice" in lost["reason"]
        for suffix in ("jpg", "png"):
            (tmp_path / "out" / f"photo-000.{suffix}").rmdir()
        assert (await submitter(receiver, *command)).json["succeeded"] == 2
        assert len(sandbox.accepted()) == 2


def test_a_csv_names_images_results_and_options_of_each_row(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture_bytes(32, 32))
    (tmp_path / "list.csv").write_text(
        "image,name,scale_factor,prompt\na.jpg,first,4x,\nhttps://example.com/b%20c.png?x=1,,2x,42\na.jpg,,,\n"
    )
    found, passed_over = items_of(str(tmp_path / "list.csv"), "freepik", {"scale_factor": "8x", "creativity": 1})
    assert [(item.name, dict(item.options)) for item in found] == [
        ("first", {"scale_factor": "4x", "creativity": 1}),
        ("b c", {"scale_factor": "2x", "prompt": "42", "creativity": 1}),
        ("a", {"scale_factor": "8x", "creativity": 1}),
    ]
    assert passed_over == []


def test_a_wrong_option_in_a_csv_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,scale_factor\nhttps://a.example/1.png,2x\nhttps://a.example/2.png,3x\n")
    with pytest.raises(CommandFailed, match=r"2\.png: options\.scale_factor: must be"):
        items_of(str(tmp_path / "list.csv"), "freepik", {})


def test_images_of_the_same_stem_get_results_of_different_names(tmp_path: Path) -> None:
    for name in ("cat.jpg", "cat.png", "dog.jpg", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"text" if name == "notes.txt" else picture_bytes(16, 16))
    found, passed_over = items_of(str(tmp_path), "freepik", {})
    assert [item.name for item in found] == ["cat", "cat_2", "dog"]
    assert [Path(passed.path).name for passed in passed_over] == ["notes.txt"]
    assert [item.name for item in items_of(str(tmp_path / "*.jpg"), "freepik", {})[0]] == ["cat", "dog"]


def test_every_file_that_is_no_image_is_named_with_its_reason(tmp_path: Path) -> None:
    for name, data in {
        "a.jpg": picture_bytes(16, 16),
        "empty.jpg": b"",
        "page.jpg": b"<html>404</html>",
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    }.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.jpg")
    found, passed_over = items_of(str(tmp_path), "freepik", {})
    assert [item.name for item in found] == ["a"]
    assert {Path(passed.path).name: passed.reason for passed in passed_over} == {
        "empty.jpg": "the file is empty",
        "pipe.jpg": "it is not a file",
        "page.jpg": "the file is not an image of a known type",
        "phone.heic": "the file is not an image of a known type (HEIC: export it as JPEG)",
    }
    with pytest.raises(CommandFailed, match="no images") as caught:
        items_of(str(tmp_path / "p*"), "freepik", {})
    assert len(caught.value.details) == 3


def test_the_key_of_an_image_changes_with_its_bytes_and_options_and_with_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture_bytes(16, 16))
    ((item,), _) = items_of(str(tmp_path), "pixelcut", {"scale": 2})
    ((same,), _) = items_of(str(tmp_path), "pixelcut", {"scale": 2})
    ((other,), _) = items_of(str(tmp_path), "pixelcut", {"scale": 4})
    assert item.key("b", "freepik", 0) == same.key("b", "freepik", 0)
    keys = {item.key("b", "freepik", 0), other.key("b", "freepik", 0), item.key("b", "freepik", 1)}
    (tmp_path / "a.jpg").write_bytes(picture_bytes(16, 17))
    assert len({*keys, item.key("b", "freepik", 0), item.key("c", "freepik", 0)}) == 5


def test_a_line_of_the_journal_that_was_cut_by_a_death_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        batch = journal.batch
        journal.intends("a", "key-a")
        journal.sent("a", "job_1")
        journal.intends("b", "key-b")
    path.write_bytes(path.read_bytes() + json.dumps({"name": "b", "job": "job_2"}).encode())
    with Journal(path) as journal:
        assert journal.batch == batch
        assert (journal.entry("a").job, journal.entry("b").key, journal.entry("b").job) == ("job_1", "key-b", None)
        journal.sent("b", "job_3")
    with Journal(path) as journal:
        assert journal.entry("b").job == "job_3"


def test_a_line_of_the_journal_that_finds_no_room_leaves_the_others_whole(tmp_path: Path) -> None:
    """The system's limit of a file's size is a full disk; it is set for one line and lifted for the next."""
    path = tmp_path / "journal"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.intends("first", "key-1")
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
        try:
            with pytest.raises(OSError, match="journal"):
                journal.intends("second", "key-2")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        journal.sent("first", "job_1")
    with Journal(path) as journal:
        assert (journal.entry("first").job, journal.entry("second").key) == ("job_1", "")


async def test_a_batch_whose_journal_is_full_names_it_and_sends_nothing_twice(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 6, picture_bytes(96, 64))
    batch = "$PROGRAM batch in --provider freepik --out out"
    async with live(tmp_path) as (receiver, sandbox):
        for size in (100, 200, 300, 400):
            status, _, err = await in_shell(receiver, batch, prepare=files_of(size))
            assert status == 1
            assert "submitter: out/.submitter-batch.jsonl: file too large; raise the limit" in err, err
        assert (await in_shell(receiver, batch))[0] == 0
        assert len(sandbox.accepted()) == 6
