"""Our verifier: agreement with independent libraries, published vectors, and hostile headers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
import svix
from hypothesis import example, given, settings
from hypothesis import strategies as st

from submitter.errors import CallbackRefused
from submitter.providers import Freepik, build
from submitter.signatures import Encoding, check, new_secret, parse_key, parse_secret, sign, verify
from submitter.vocabulary import Callback, Trust

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGE_ID = "msg_2Xh5example0001"
TEXT = "0123456789abcdef0123456789abcdef"
BODY_A = (
    b'{"task_id":"046b6c7f-0b8a-43b9-b35d-6489e6daee91","status":"COMPLETED",'
    b'"generated":["https://ai-statics.freepik.com/completed_task_image.jpg"]}'
)
BODY_B = b'{"task_id":"046b6c7f-0b8a-43b9-b35d-6489e6daee91","status":"IN_PROGRESS","generated":[]}'
VECTORS: list[tuple[bytes, Encoding, str]] = [
    (BODY_A, "utf8", "Nbi1rlwTtWH8MwPyQfrh51Cer/8k5GSxn9RDBbiH6jk="),
    (BODY_A, "base64", "+th3r7qd7nRj+NmGbnorYeE4Q5hr0QuuDBnvdmWFJLE="),
    (BODY_A, "hex", "lrs96ECRG9W7Un4ePJyElbylvO80/cePoraylmp81FI="),
    (BODY_B, "utf8", "zbAD3lljl00K33wsLab4yL7uEWyer1kH3fFv8O24h6I="),
    (BODY_B, "base64", "tQtariqjInqrHDo0BC1JVj19jDCRKwF4xfzAwAzk2A4="),
    (BODY_B, "hex", "0JrejtUffGsgBoyB932h2devyG5zl7qkyKHP2Cnm/Mk="),
]
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STANDARD = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
STANDARD_BODY = b'{"test": 2432232314}'
STANDARD_NOW = datetime.fromtimestamp(1614265330, UTC)


def freepik(*secrets: str, encoding: Encoding = "utf8") -> Freepik:
    provider = build("freepik", api_key="k", webhook_secrets=secrets or (TEXT,), secret_encoding=encoding)
    assert isinstance(provider, Freepik)
    return provider


def callback(body: bytes, signature: str, *, timestamp: str = "1767225600") -> Callback:
    headers = {"webhook-id": MESSAGE_ID, "webhook-timestamp": timestamp, "webhook-signature": signature}
    return Callback(tuple((name.encode(), value.encode("latin-1")) for name, value in headers.items()), body, NOW)


@pytest.mark.parametrize(("body", "encoding", "signature"), VECTORS)
@pytest.mark.parametrize("version", ["v1", "v2", "v17"])
def test_freepik_vectors_verify_under_their_encoding_alone(
    body: bytes, encoding: Encoding, signature: str, version: str
) -> None:
    encodings: tuple[Encoding, ...] = ("utf8", "base64", "hex")
    for tried in encodings:
        provider = freepik(encoding=tried)
        assert provider.trust is Trust.SIGNED_BODY
        if tried == encoding:
            provider.verify(callback(body, f"{version},{signature}"), NOW)
        else:
            with pytest.raises(CallbackRefused, match="FREEPIK_WEBHOOK_SECRET") as caught:
                provider.verify(callback(body, f"{version},{signature}"), NOW)
            assert caught.value.reason == "no_match"


def test_any_entry_and_any_of_the_secrets_is_enough() -> None:
    good = f"v1,{VECTORS[0][2]}"
    for header in (f"v1,AAAA {good}", f"{good} v2,zz", f"v9x,{VECTORS[0][2]} {good}", f" {good}  "):
        freepik("another-secret", TEXT).verify(callback(BODY_A, header), NOW)


def test_without_a_secret_freepik_callbacks_are_only_hints() -> None:
    provider = build("freepik", api_key="k")
    assert provider.trust is Trust.CAPABILITY_TOKEN
    provider.verify(callback(BODY_A, "v1,nonsense"), NOW)


def test_the_standard_webhooks_vector_verifies() -> None:
    verify(STANDARD, STANDARD_BODY, STANDARD_SECRET, now=STANDARD_NOW)
    verify(
        [(name.upper(), value) for name, value in STANDARD.items()], STANDARD_BODY, STANDARD_SECRET, now=STANDARD_NOW
    )
    as_bytes = {name.encode(): value.encode() for name, value in STANDARD.items()}
    verify(as_bytes, STANDARD_BODY, [new_secret(), STANDARD_SECRET], now=STANDARD_NOW)
    assert sign(STANDARD_SECRET, STANDARD["webhook-id"], STANDARD_NOW, STANDARD_BODY) == STANDARD["webhook-signature"]


@given(body=st.text(max_size=200), message_id=st.from_regex(r"\A[a-zA-Z0-9_]{1,40}\Z"))
@settings(max_examples=50, deadline=None)
def test_we_agree_with_the_official_libraries_in_both_directions(body: str, message_id: str) -> None:
    secret, now = new_secret(), datetime.now(UTC)
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": sign(secret, message_id, now, body.encode()),
    }
    assert standardwebhooks.Webhook(secret).sign(message_id, now, body) == headers["webhook-signature"]
    assert svix.Webhook(secret).sign(message_id, now, body) == headers["webhook-signature"]
    verify(headers, body.encode(), secret, now=now)
    # The libraries parse the body too, so they get JSON.
    headers["webhook-signature"] = sign(secret, message_id, now, b'{"a":1}')
    assert standardwebhooks.Webhook(secret).verify('{"a":1}', headers) == {"a": 1}
    svix.Webhook(secret).verify('{"a":1}', headers)


@pytest.mark.parametrize(("offset", "reason"), [(299, None), (-299, None), (301, "stale"), (-301, "future")])
def test_the_clock_may_be_off_by_five_minutes_either_way(offset: int, reason: str | None) -> None:
    now = STANDARD_NOW + timedelta(seconds=offset)
    if reason is None:
        verify(STANDARD, STANDARD_BODY, STANDARD_SECRET, now=now)
    else:
        with pytest.raises(CallbackRefused) as caught:
            verify(STANDARD, STANDARD_BODY, STANDARD_SECRET, now=now)
        assert caught.value.reason == reason


GOOD = STANDARD["webhook-signature"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"webhook-id": None}, "missing_header"),
        ({"webhook-timestamp": None}, "missing_header"),
        ({"webhook-signature": None}, "missing_header"),
        ({"webhook-id": ""}, "missing_header"),
        ({"webhook-signature": ""}, "missing_header"),
        ({"webhook-id": "other"}, "no_match"),
        ({"webhook-id": "a" * 10_000}, "header_too_long"),
        ({"webhook-timestamp": "1614265331"}, "no_match"),
        ({"webhook-timestamp": "NaN"}, "bad_timestamp"),
        ({"webhook-timestamp": "inf"}, "bad_timestamp"),
        ({"webhook-timestamp": "-1"}, "bad_timestamp"),
        ({"webhook-timestamp": "+1614265330"}, "bad_timestamp"),
        ({"webhook-timestamp": "1614265 330"}, "bad_timestamp"),
        ({"webhook-timestamp": "1614265330.0"}, "bad_timestamp"),
        ({"webhook-timestamp": "1_614_265_330"}, "bad_timestamp"),
        ({"webhook-timestamp": "1e9"}, "bad_timestamp"),
        ({"webhook-timestamp": "²"}, "bad_timestamp"),
        ({"webhook-timestamp": "9" * 15}, "future"),
        ({"webhook-timestamp": "9" * 16}, "bad_timestamp"),
        ({"webhook-timestamp": "9" * 5000}, "bad_timestamp"),
        ({"webhook-timestamp": "0"}, "stale"),
        ({"webhook-signature": GOOD.removeprefix("v1,")}, "no_known_version"),
        ({"webhook-signature": GOOD.replace("v1,", "v1a,")}, "no_known_version"),
        ({"webhook-signature": GOOD.replace("v1,", "V1,")}, "no_known_version"),
        ({"webhook-signature": GOOD.replace("v1,", "v1")}, "no_known_version"),
        ({"webhook-signature": GOOD.replace("v1,", "v1,,")}, "no_match"),
        ({"webhook-signature": GOOD + ","}, "no_match"),
        ({"webhook-signature": GOOD[:-1]}, "no_match"),
        ({"webhook-signature": "v1,"}, "no_match"),
        ({"webhook-signature": "v1,\xff\xfe"}, "no_match"),
        ({"webhook-signature": "v1,\x00"}, "no_match"),
        ({"webhook-signature": "   "}, "missing_header"),
        ({"webhook-signature": "v1," + "A" * 10_000}, "header_too_long"),
        ({"webhook-signature": "v1,A " * 33 + GOOD}, "too_many_entries"),
        ({"webhook-signature": "x " * 1000 + GOOD}, "too_many_entries"),
    ],
)
def test_hostile_headers_are_refused_with_a_stable_reason(changed: dict[str, str | None], reason: str) -> None:
    headers = {name: value for name, value in {**STANDARD, **changed}.items() if value is not None}
    with pytest.raises(CallbackRefused) as caught:
        verify(headers, STANDARD_BODY, STANDARD_SECRET, now=STANDARD_NOW)
    assert caught.value.reason == reason
    assert str(caught.value)


@pytest.mark.parametrize(
    "headers", [None, 5, "text", b"text", [], {}, [5, (1, 2), ("a",)], {None: None}, {"webhook-id": "\u2028"}]
)
def test_headers_of_a_wrong_kind_are_missing_headers(headers: object) -> None:
    with pytest.raises(CallbackRefused) as caught:
        verify(headers, b"", STANDARD_SECRET, now=NOW)  # type: ignore[arg-type]
    assert caught.value.reason == "missing_header"


@pytest.mark.parametrize("body", [None, "text", 5, {}])
def test_a_body_that_is_not_bytes_is_refused(body: object) -> None:
    with pytest.raises(CallbackRefused) as caught:
        verify(STANDARD, body, STANDARD_SECRET, now=STANDARD_NOW)  # type: ignore[arg-type]
    assert caught.value.reason == "bad_body"


def test_a_changed_body_does_not_match() -> None:
    with pytest.raises(CallbackRefused) as caught:
        verify(STANDARD, STANDARD_BODY + b" ", STANDARD_SECRET, now=STANDARD_NOW)
    assert caught.value.reason == "no_match"


def test_no_secret_means_refusal_never_acceptance() -> None:
    with pytest.raises(CallbackRefused) as caught:
        verify(STANDARD, STANDARD_BODY, [], now=STANDARD_NOW)
    assert caught.value.reason == "no_secret"


@settings(max_examples=500, deadline=None)
@given(
    message_id=st.none() | st.binary(max_size=700),
    timestamp=st.none() | st.binary(max_size=30) | st.integers(-(10**20), 10**20).map(lambda n: str(n).encode()),
    signatures=st.none()
    | st.binary(max_size=5000)
    | st.lists(st.tuples(st.sampled_from([b"v1", b"v2", b"v1a", b""]), st.binary(max_size=60)), max_size=40).map(
        lambda entries: b" ".join(b",".join(entry) for entry in entries)
    ),
    body=st.binary(max_size=100),
)
@example(b"id", b"1767225600", b"v1," * 1000, b"")
@example(b"\xff", b"1767225600", b"v1,\xff", b"\xff")
def test_nothing_but_a_refusal_ever_comes_out(
    message_id: bytes | None, timestamp: bytes | None, signatures: bytes | None, body: bytes
) -> None:
    with pytest.raises(CallbackRefused):
        check(message_id, timestamp, signatures, body, [b"key"], now=NOW)


def test_new_secrets_are_new_and_parse() -> None:
    secrets = {new_secret() for _ in range(10)}
    assert len(secrets) == 10
    assert all(len(parse_secret(secret)) == 32 for secret in secrets)


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_"),
        ("whsec_", "empty"),
        ("whsec_!!!!", "base64"),
        ("whsec_é", "base64"),
        ("whsec_AAAA", "24 to 64"),
        ("whsec_" + "A" * 100, "24 to 64"),
    ],
)
def test_a_malformed_secret_is_a_clear_value_error(secret: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_secret(secret)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("xyz", "hex"), ("abc", "hex"), ("a!b", "base64"), ("", "utf8"), ("  ", "utf8"), ("x", "rot13")],
)
def test_a_malformed_vendor_key_shows_when_it_is_configured(text: str, encoding: Encoding) -> None:
    with pytest.raises(ValueError, match="secret"):
        parse_key(text, encoding)
    with pytest.raises(ValueError, match="secret"):
        freepik(text, encoding=encoding)
