"""A job in words, as `receiver jobs show` and `submitter show` print it."""

from __future__ import annotations

from typing import Any

import pytest

from submitter.printing import print_fields
from submitter.words import job_fields, size_text, waiting_text

NOTHING: dict[str, Any] = {"file_name": None, "width": None, "height": None, "bytes": None}


def test_a_job_is_shown_in_words_and_without_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    image = {**NOTHING, "url": "/v1/jobs/j/images/0", "source_url": "https://cdn.example.com/0", "content_type": None}
    whole = {"width": 640, "height": 480, "bytes": 50_953, "content_type": "image/png"}
    print_fields(
        job_fields(
            {
                "id": "job_1",
                "created_at": "2026-01-31T12:00:00.123456Z",
                "remote_id": None,
                "metadata": {"bon": "日本", "n": None},
                "input": {"file_name": "港.png", "width": 320, "height": 240, "bytes": 812},
                "cost": {"amount": "0.10", "unit": "USD"},
                "error": {"code": "TOO_LARGE", "message": "too large", "permanent": True},
                "waiting_for": {"reason": "callback", "until": "2026-01-31T13:00:00+01:00"},
                "images": [
                    {**image, **whole, "state": "kept", "kept": True, "lost_reason": None},
                    {**image, "state": "lost", "kept": False, "lost_reason": "answered 404", "source_url": None},
                    {**image, "state": "wanted", "kept": False, "lost_reason": None},
                ],
            }
        )
    )
    assert capsys.readouterr().out.splitlines() == [
        "id          job_1",
        "created_at  2026-01-31 12:00:00Z",
        'metadata    {"bon": "日本", "n": null}',
        "input       港.png, 320×240, 812 B",
        "cost        0.10 USD",
        "error       too large (TOO_LARGE, permanent)",
        "waiting_for waits for a callback, until 2026-01-31 12:00:00Z",
        "images      kept, 640×480, 51.0 kB, image/png, /v1/jobs/j/images/0",
        "            lost: answered 404",
        "            wanted, https://cdn.example.com/0",
    ]


def test_a_job_that_has_nothing_yet_has_no_empty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields(
        job_fields({"id": "job_1", "input": NOTHING, "cost": None, "error": None, "waiting_for": None, "images": []})
    )
    assert capsys.readouterr().out == "id job_1\n"


def test_sizes_and_reasons_in_words() -> None:
    assert [size_text(count) for count in (0, 999, 1000, 4_194_304)] == ["0 B", "999 B", "1.0 kB", "4.2 MB"]
    assert (waiting_text("rate_limit"), waiting_text("a_new_one")) == ("waits for its turn", "a new one")
