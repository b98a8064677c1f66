"""The enlargement of a result, compared with its input and the requested scale."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from receiver.domain.jobs import InputImage, Job, KeptImage
from submitter.vocabulary import State

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def shown(result: tuple[int | None, int | None], given: InputImage, options: dict[str, Any]) -> tuple[Any, Any]:
    job = Job("job_1", "freepik", State.SUCCEEDED, 1, NOW, options=options, input=given)
    image = KeptImage("job_1", 0, None, None, width=result[0], height=result[1])
    (found,) = job.to_json([image])["images"]
    return found["scale"], found["upscaled"]


@pytest.mark.parametrize(
    ("result", "options", "expected"),
    [
        ((400, 320), {"scale_factor": "4x"}, (4.0, True)),
        ((320, 400), {"scale_factor": "4x"}, (4.0, True)),
        ((396, 316), {"scale": 4}, (3.95, True)),
        ((200, 160), {"scale_factor": 4}, (2.0, False)),
        ((200, 160), {}, (2.0, True)),
        ((200, 160), {"resolution": "4k"}, (2.0, True)),
        ((100, 80), {}, (1.0, False)),
        ((100, 80), {"scale": 1}, (1.0, True)),
        ((50, 40), {"scale_factor": "nonsense"}, (0.5, False)),
        ((None, None), {"scale": 4}, (None, None)),
    ],
)
def test_a_result_is_compared_with_its_input_and_scale(
    result: tuple[int | None, int | None], options: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    assert shown(result, InputImage("a.png", 100, 80, 1000), options) == expected


def test_without_the_inputs_size_nothing_is_claimed() -> None:
    assert shown((400, 320), InputImage(), {"scale": 4}) == (None, None)
