"""`Retry-After`, as servers really send it."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest

from submitter.retry_after import retry_after_seconds

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = 86400.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("0.4", 0.4),
        ("9" * 5000, DAY),
        ("Sun, 01 Mar 2026 12:01:00 GMT", 60.0),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        ("Sun, 01 Mar 2036 11:00:00 -0000", DAY),
        *(
            (text, None)
            for text in (
                "",
                "soon",
                "-1",
                "1e3",
                "nan",
                "inf",
                "²",
                "٣",
                "Sun, 99 Mar 2026 12:01:00 GMT",
                "1 Jan 99999",
            )
        ),
    ],
)
def test_a_pause_is_read_and_capped_or_ignored(text: str, seconds: float | None) -> None:
    assert retry_after_seconds(httpx.Headers([(b"retry-after", text.encode())]), longest=DAY, now=NOW) == seconds


def test_no_header_asks_for_no_pause() -> None:
    assert retry_after_seconds(httpx.Headers(), longest=DAY) is None


def test_a_date_counts_from_the_answers_own_date() -> None:
    headers = {"retry-after": "Sun, 01 Mar 2026 15:00:30 GMT", "date": "Sun, 01 Mar 2026 15:00:00 GMT"}
    assert retry_after_seconds(httpx.Headers(headers), longest=DAY, now=NOW) == 30.0
