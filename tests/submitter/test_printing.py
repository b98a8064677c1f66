"""Output of the commands: a terminal obeys no text, whoever wrote it."""

from __future__ import annotations

import json

import pytest
from rich.text import Text

from submitter.printing import Listing, failed, harmless, json_text, print_fields, print_json, print_table, say

EVIL = "a\x1b]0;owned\x07 b\x1b[2J\rc\x9b31m\x7f\u202ed\u2028e\nf\ud800"
SHOWN = r"a\x1b]0;owned\x07 b\x1b[2J\rc\x9b31m\x7f\u202ed\u2028e\nf\ud800"


def test_control_characters_are_shown_as_escapes_and_all_else_as_it_is() -> None:
    assert harmless(EVIL) == SHOWN
    for good in ("", "naïve 画像 🙂 → [red]x[/red] \\x1b", "a b"):
        assert harmless(good) == good


def test_every_way_of_printing_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    table = Listing("one", "two")
    table.add_row(EVIL, Text(EVIL, style="red"))
    print_table(table)
    print_fields({"name": EVIL, "deep": {"text": EVIL}})
    say(EVIL)
    say(EVIL, fg="red")
    say(str(failed(EVIL)), err=True)
    print_json({"text": EVIL})
    out, err = capsys.readouterr()
    assert all(char.isprintable() for char in (out + err).replace("\n", ""))
    assert out.count(SHOWN) == 4
    assert err == SHOWN + "\n"


def test_json_says_the_same_as_before() -> None:
    value = {"text": EVIL, "good": "naïve 画像"}
    text = json_text(value)
    assert json.loads(text) == value
    assert "naïve 画像" in text
