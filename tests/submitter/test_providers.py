"""Rules for all five, and the small readers that they share."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from submitter.parsing import link, sentence
from submitter.provider import ProviderOptions
from submitter.providers import PROVIDERS, build

NAMES = sorted(PROVIDERS)


def test_the_five_are_registered_under_their_names() -> None:
    assert NAMES == ["apixo", "freepik", "novita", "pixelcut", "upscayl"]
    assert all(PROVIDERS[name].name == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_for_people(name: str) -> None:
    schema = PROVIDERS[name].Options.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all(field.get("description") for field in schema["properties"].values())


@pytest.mark.parametrize("name", NAMES)
def test_only_required_fields_have_defaults(name: str) -> None:
    options = PROVIDERS[name].Options
    assert set(options().to_send()) == set(options.required_by_provider)
    assert isinstance(options(), ProviderOptions)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["", "  ", "two words", "line\nbreak", "käy"])
def test_an_impossible_key_is_reported_at_start(name: str, key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        build(name, api_key=key)
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["api.example", "ftp://x.example", "http://", "https://x.example?a=1", "http://a.example:port", "/x"]
)
def test_an_impossible_base_url_is_reported_at_start(url: str) -> None:
    with pytest.raises(ValueError, match="base URL"):
        build("novita", api_key="k", base_url=url)


@pytest.mark.parametrize("written", ["https://a.example/api// ", " https://a.example/api\n", "https://a.example/api/"])
def test_slashes_and_spaces_around_a_base_url_are_not_part_of_it(written: str) -> None:
    assert build("novita", api_key="k", base_url=written).base_url == "https://a.example/api"
    assert PROVIDERS["novita"].Settings(base_url=written).base_url == "https://a.example/api"


def test_an_unknown_provider_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="freepik, apixo"):
        build("midjourney", api_key="k")


@pytest.mark.parametrize("name", NAMES)
def test_each_file_names_the_pages_it_was_written_from(name: str) -> None:
    module = inspect.getmodule(PROVIDERS[name])
    assert module is not None and module.__doc__ is not None
    assert "https://" in module.__doc__ and "read 2026-11" in module.__doc__


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("https://a.example/x?y=1&z=%20~#z", True),
        ("HTTP://a.example", True),
        ("https://", False),
        ("https:///x", False),
        ("https://?x", False),
        ("https://a b.example/", False),
        ("https://a.example\\@b.example/", False),
        ("https://a.example/\nx", False),
        ("https://a.example:99999/", False),
        ("https://[::1", False),
        ("file:///etc/passwd", False),
        ("javascript:alert(1)", False),
        ("data:image/png;base64,AAAA", False),
        ("//", False),
        ("///x", False),
        ("users/x.jpg", False),
        ("https://a.example/" + "x" * 9000, False),
        ("https://a.example/\ud800", False),
        ("", False),
        (5, False),
        (None, False),
        (["https://a.example"], False),
    ],
)
def test_only_web_addresses_are_links(value: Any, good: bool) -> None:
    assert link(value) == (value if good else None)


@pytest.mark.parametrize(
    ("value", "tidied"),
    [
        (" https://a.example/x.png\r\n", "https://a.example/x.png"),
        ("https://a.example/my photo.png?a=b c", "https://a.example/my%20photo.png?a=b%20c"),
        ("//a.example/x.png", "https://a.example/x.png"),
        ("https://a.example:8443/ü%2Fx", "https://a.example:8443/%C3%BC%2Fx"),
    ],
)
def test_a_link_is_tidied_as_browsers_do(value: str, tidied: str) -> None:
    assert link(value) == tidied


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words", "plain words"),
        ("  two\n lines\t", "two lines"),
        ("", None),
        (None, None),
        (5, None),
        ("<!DOCTYPE html><p>x", None),
        (" <html>", None),
        ("a < b", "a < b"),
        ("see https://docs.example", "see https://docs.example"),
        ("no https://hook.example/tok/en?x=1 there", "no https://hook.example/[hidden] there"),
        ("no https://user:pw@hook.example/x", "no https://hook.example/[hidden]"),
        ("no https%3A%2F%2Fhook.example%2Ftok there", "no [hidden] there"),
        ("key s3cret-key used", "key [hidden] used"),
        ("nul \x00 and \ud800 half", "nul and half"),
        ("x" * 9000, "x" * 500),
    ],
)
def test_a_message_is_one_bounded_line_without_secrets(text: Any, expected: str | None) -> None:
    assert sentence(text, "s3cret-key") == expected
