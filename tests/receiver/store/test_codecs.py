"""Rows, JSON and schemas of entities, all derived from one description."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator

from receiver.domain.deliveries import Attempt, DeliveryState, DeliveryView, Replayed
from receiver.domain.endpoints import Endpoint, SigningSecret
from receiver.domain.entity import json_of, nullable, schema_of
from receiver.domain.events import Event
from receiver.domain.evidence import Evidence, headers_to_json
from receiver.domain.jobs import InputImage, Job, KeptImage, Reason, Source, Verdict, WaitingFor
from receiver.store import tables
from receiver.store.codecs import Codec
from submitter.vocabulary import Cost, Failure, State, Trust

NOW = datetime(2026, 11, 1, 12, 30, 15, 123456, tzinfo=UTC)
JOB = Job(id="job_1", provider="freepik", state=State.QUEUED, version=1, created_at=NOW)
FULL_JOB = replace(
    JOB,
    state=State.FAILED,
    options={"scale": 2, "text": "“ü”"},
    metadata={"order": [1, {"a": None}]},
    awaits_callback=True,
    input=InputImage("in.jpg", 80, 60, 5_000_000_000),
    error=Failure("bad", "it is bad", permanent=True),
    cost=Cost(Decimal("0.0100"), "USD"),
    settled_by=Source.CALLBACK,
    tries=2,
    next_poll_at=NOW - timedelta(days=30_000),
    finished_at=NOW + timedelta(microseconds=1),
)
ENDPOINT = Endpoint(
    id="ep_1",
    url="https://x.example",
    created_at=NOW,
    secrets=(SigningSecret("whsec_a"), SigningSecret("whsec_b", NOW)),
    event_types=("job.failed", "job.succeeded"),
    enabled=False,
    timeout_seconds=2.5,
    rate="5/1",
)
EVIDENCE = Evidence(
    Source.POLL,
    "novita",
    "job_1",
    NOW,
    headers_to_json([(b"a", b"\xff")]),
    b"\x00\xff",
    verdict=Verdict.HINT,
    trust=Trust.OWN_CALL,
    status=200,
    id=7,
)
ENTITIES: list[Any] = [
    JOB,
    FULL_JOB,
    EVIDENCE,
    KeptImage("job_1", 0, "https://x.example/1.png", None),
    KeptImage("job_1", 1, None, NOW, "image/png", 10, 20, 3_000_000_000, "00ff", state="lost", tries=3),
    Event(position=3, id="evt_1", type="job.failed", job_id=None, provider=None, created_at=NOW, body="{}"),
    ENDPOINT,
    DeliveryView(
        id="dlv_1",
        event_id="evt_1",
        event_type="job.failed",
        job_id=None,
        endpoint_id="ep_1",
        url=None,
        state=DeliveryState.GIVEN_UP,
        tries=3,
        example=True,
        next_at=None,
        created_at=NOW,
        finished_at=NOW,
        last_status=500,
        last_error="answered 500",
        fault="theirs",
    ),
    Attempt(NOW, 0.25, None, b"busy", "timeout"),
]


@pytest.mark.parametrize("entity", ENTITIES, ids=lambda entity: type(entity).__name__)
def test_what_is_written_is_what_is_read(entity: Any) -> None:
    codec = Codec[Any](type(entity))
    assert codec.written == codec.columns
    assert codec.from_row(codec.to_row(entity)) == entity


def test_a_column_that_the_database_counts_up_is_not_written() -> None:
    codec = Codec(Evidence, numbered="id")
    assert set(codec.columns) - set(codec.written) == {"id"}
    row = dict(zip(codec.written, codec.to_row(EVIDENCE), strict=True)) | {"id": 9}
    assert codec.from_row([row[name] for name in codec.columns]) == replace(EVIDENCE, id=9)


CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"state": State.QUEUED, "tries": 0}, {}),
    ({"state": State.RUNNING}, {"state": "running"}),
    ({"awaits_callback": True}, {"awaits_callback": 1}),
    ({"sent_at": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)}, {"sent_at": 1_000_000}),
    (
        {"error": Failure("bad", "it is", permanent=False)},
        {"error_code": "bad", "error_message": "it is", "error_permanent": 0},
    ),
    ({"cost": Cost(Decimal("1E+2"), "credits")}, {"cost_amount": "100", "cost_unit": "credits"}),
]


@pytest.mark.parametrize(("changed", "columns"), CHANGES)
def test_only_what_changed_is_written(changed: dict[str, Any], columns: dict[str, Any]) -> None:
    after = replace(JOB, **changed)
    assert Codec(Job).changes(JOB, after) == columns
    undone = Codec(Job).changes(after, JOB)
    assert set(undone) == set(columns)


def test_every_column_of_an_entity_is_in_its_table() -> None:
    of = {
        Job: tables.jobs,
        Evidence: tables.evidence,
        KeptImage: tables.images,
        Event: tables.events,
        Endpoint: tables.endpoints,
        DeliveryView: tables.deliveries,
        Attempt: tables.attempts,
    }
    for entity, table in of.items():
        assert set(Codec[Any](entity).columns) <= set(table.columns.keys())


@pytest.mark.parametrize(
    "value",
    [*(entity for entity in ENTITIES if not isinstance(entity, Attempt)), WaitingFor(Reason.POLL, NOW), Replayed(1, 2)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_shown_is_as_its_schema_says(value: Any) -> None:
    shown = json_of(type(value))(value)
    schema = schema_of(type(value))
    assert list(shown) == schema["required"] == list(schema["properties"])
    assert [error.message for error in OAS31Validator(schema).iter_errors(shown)] == []


def test_an_enumeration_or_null_allows_null() -> None:
    assert nullable({"type": "string"}) == {"type": ["string", "null"]}
    assert OAS31Validator(schema_of(Job)["properties"]["settled_by"]).is_valid(None)


def test_a_field_that_only_the_receiver_needs_is_not_shown() -> None:
    hidden = {"version", "claimed_id", "input_name", "input_url", "retry_at", "polls", "last_error"}
    assert hidden.isdisjoint(FULL_JOB.to_json(()))
    assert hidden <= {field.name for field in dataclasses.fields(Job)}
