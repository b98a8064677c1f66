"""The text of an event: the same JSON whatever the caller's metadata holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from receiver.domain.events import one_line


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0.1,
        1e300,
        -0.0,
        2**63,
        10**30,
        "",
        'a "quoted" \\ text / with\ttabs\nand breaks\r\x00\x1f',
        "caf\u00e9 \u2028\u2029\x85\x7f \U0001f600",
        [1, [2, {"three": []}], {}],
        {"": {"a b": None}},
    ],
)
def test_an_event_says_on_one_line_what_was_put_into_it(value: Any) -> None:
    text = one_line({"type": "job.succeeded", "data": {"metadata": {"given": value}}})
    assert text.splitlines() == [text]
    assert text == text.strip()
    read = json.loads(text)["data"]["metadata"]["given"]
    assert (read, type(read)) == (value, type(value))


def test_half_of_a_surrogate_pair_is_escaped() -> None:
    assert one_line({"data": "\ud83d"}) == '{"data":"\\ud83d"}'
