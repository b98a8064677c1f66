"""Results are named after their inputs, in any script, safely."""

from __future__ import annotations

import pytest

from submitter.file_names import stem_of
from submitter.image_files import SUFFIXES
from submitter.sdk.result_files import result_name
from submitter.sdk.values import JobImage


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("cafe\u0301.png", "caf\u00e9"),
        ("हिन्दी.png", "हिन्दी"),
        ("🐱.png", "🐱"),
        ("ünï 猫.png", "ünï 猫"),
        ("new\nline.png", "new_line"),
        ("a\u202eb\u200d.png", "a_b_"),
        ('it\'s "q".png', "it_s _q_"),
        (".hidden.png", "hidden"),
        ("https://a.example/in/%D1%84%2F..%2Fb.png?x=1", "b"),
    ],
)
def test_letters_of_any_script_stay_and_the_rest_is_replaced(name: str, stem: str) -> None:
    assert stem_of(name) == stem


@pytest.mark.parametrize(("content_type", "suffix"), SUFFIXES.items())
def test_a_result_of_every_type_has_its_suffix(content_type: str, suffix: str) -> None:
    image = JobImage(url="https://receiver.example/x", content_type=content_type)
    assert result_name("cat", image, 0, 1) == f"cat{suffix}"
