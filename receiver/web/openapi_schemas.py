"""The shapes of the public surface, as JSON Schema: what is asked comes from its models, what is answered from here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from receiver.domain.deliveries import DeliveryState
from receiver.domain.events import ENDPOINT_EVENTS, EVENT_TYPES, JOB_EVENTS, PROVIDER_EVENTS
from receiver.domain.jobs import Source, Verdict
from receiver.web.schemas import BulkReplay, EndpointChange, NewEndpoint, NewPause, Rotation, Trial
from submitter.provider import Provider
from submitter.vocabulary import State, Trust

Schema = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def page_of(name: str) -> Schema:
    """A page of a list."""
    return record({"items": {"type": "array", "items": ref(name)}, "next": nullable(_text("The next page's cursor."))})


def record(properties: Mapping[str, Schema], *, optional: tuple[str, ...] = (), **more: Any) -> Schema:
    """An object that has all of *properties* but the *optional* ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, **more}


def nullable(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _text(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _one_of(values: Any, description: str = "") -> Schema:
    return _text(description, enum=list(values))


_MOMENT = _text(format="date-time")
_NUMBER, _WHOLE, _FLAG = {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_ANYTHING = {"type": "object", "additionalProperties": True}

_SUMS = record(
    {
        "created": _WHOLE,
        "finished": {"type": "object", "additionalProperties": _WHOLE, "description": "By state."},
        "turnaround_seconds": record({"p50": nullable(_NUMBER), "p95": nullable(_NUMBER)}),
        "callbacks": record(dict.fromkeys(("received", "refused", "late", "awaited", "lost"), _WHOLE)),
        "cost": {"type": "object", "additionalProperties": _text(), "description": "By unit."},
    }
)
_IMAGE = record(
    {
        "url": _text("Our copy: GET it with the bearer token once `kept`."),
        "source_url": nullable(_text("The provider's link, as long as it lives.")),
        "expires_at": nullable(_MOMENT),
        "content_type": nullable(_text()),
        "width": nullable(_WHOLE),
        "height": nullable(_WHOLE),
        "bytes": nullable(_WHOLE),
        "sha256": nullable(_text()),
        "state": _text(
            "`lost`: our copy will never be there, unless a poll brings a fresh link.", enum=["wanted", "kept", "lost"]
        ),
        "lost_reason": nullable(_text("Why it is lost.")),
        "kept": _FLAG,
    }
)
_JOB = record(
    {
        "id": _text(),
        "provider": _text(),
        "state": _one_of(State),
        "remote_id": nullable(_text("The provider's id of the task.")),
        "options": _ANYTHING,
        "metadata": _ANYTHING,
        "notify_url": nullable(_text()),
        "images": {"type": "array", "items": ref("Image")},
        "error": nullable(record({"code": _text(), "message": _text(minLength=1), "permanent": _FLAG})),
        "cost": nullable(record({"amount": _text(examples=["10"]), "unit": _one_of(("credits", "USD"))})),
        "settled_by": nullable(_one_of(Source, "The channel that brought the update.")),
        "resubmit_of": nullable(_text()),
        "created_at": _MOMENT,
        "sent_at": nullable(_MOMENT),
        "due_at": nullable(_MOMENT),
        "deadline_at": nullable(_MOMENT),
        "finished_at": nullable(_MOMENT),
    }
)
_EVIDENCE = record(
    {
        "id": _WHOLE,
        "source": _one_of(Source),
        "verdict": _one_of(Verdict),
        "trust": nullable(_one_of(Trust)),
        "received_at": _MOMENT,
        "read_at": nullable(_MOMENT),
        "status": nullable(_WHOLE),
        "peer": nullable(_text()),
        "note": nullable(_text()),
        "headers": {"type": "array", "items": {**_TEXTS, "minItems": 2, "maxItems": 2}},
        "body": nullable(_text("Null if it is not UTF-8.")),
        "body_base64": _text("There if `body` is null.", contentEncoding="base64"),
    },
    optional=("body_base64",),
)
_PROVIDER = record(
    {
        "name": _text(),
        "title": _text(),
        "configured": _FLAG,
        "capabilities": record(
            {"callbacks": _FLAG, "pollable": _FLAG, "wants_url": _FLAG, "trust": nullable(_one_of(Trust))}
        ),
        "options": {**_ANYTHING, "description": "JSON Schema of its options."},
        "paused": nullable(record({"reason": _text(), "since": _MOMENT})),
        "queue": record(
            {"length": _WHOLE, "done_in_seconds": nullable(_NUMBER), "done_at": nullable(_MOMENT)},
        ),
        "health": _ANYTHING,
        "spend": {"type": "array", "items": _ANYTHING},
    }
)
_EVENT = record(
    {
        "position": _WHOLE,
        "id": _text("The `webhook-id` of its deliveries."),
        "type": _one_of(EVENT_TYPES),
        "job_id": nullable(_text()),
        "provider": nullable(_text()),
        "created_at": _MOMENT,
        "timestamp": _MOMENT,
        "data": _ANYTHING,
    }
)
_ENDPOINT = {
    "id": _text(),
    "url": _text(),
    "event_types": {"type": "array", "items": _one_of(EVENT_TYPES), "description": "Empty: all."},
    "providers": _TEXTS,
    "description": _text(),
    "enabled": _FLAG,
    "timeout_seconds": _NUMBER,
    "concurrency": _WHOLE,
    "rate": nullable(_text("`count/seconds`")),
    "failing_since": nullable(_MOMENT),
    "disabled_reason": nullable(_text()),
    "created_at": _MOMENT,
}
_SECRET = _text("Shown once, and never again.", pattern="^whsec_")
_DELIVERY = {
    "id": _text(),
    "event_id": _text(),
    "event_type": _one_of(EVENT_TYPES),
    "job_id": nullable(_text()),
    "endpoint_id": nullable(_text("Null: the job's own notify_url.")),
    "url": nullable(_text("Null: the endpoint was removed.")),
    "state": _one_of(DeliveryState),
    "tries": {**_WHOLE, "description": "Since it was queued, or replayed."},
    "example": {**_FLAG, "description": "It came of an endpoint's test."},
    "next_at": nullable(_MOMENT),
    "created_at": _MOMENT,
    "finished_at": nullable(_MOMENT),
    "last_status": nullable(_WHOLE),
    "last_error": nullable(_text()),
    "fault": nullable(_one_of(("ours", "theirs"), "Whose fault the last failure was.")),
}
_ATTEMPT = record(
    {
        "started_at": _MOMENT,
        "seconds": _NUMBER,
        "status": nullable(_WHOLE),
        "answer": nullable(_text("The first bytes of what was answered.")),
        "error": nullable(_text()),
    }
)
_PROBLEM = record(
    {
        "type": _text(format="uri"),
        "title": _text(),
        "status": _WHOLE,
        "detail": _text(),
        "code": _text("Stable: what programs look at."),
        "field": _text("What of the request is wrong."),
        "remedy": _text("What to change."),
    },
    optional=("field", "remedy"),
)


def schemas(providers: Mapping[str, type[Provider]]) -> dict[str, Schema]:
    """All components."""
    found: dict[str, Schema] = {
        "Problem": _PROBLEM,
        "Image": _IMAGE,
        "Job": _JOB,
        "LostJob": {"allOf": [ref("Job"), record({"reason": nullable(_text("Why not all of its results are kept."))})]},
        "Evidence": _EVIDENCE,
        "Provider": _PROVIDER,
        "Event": _EVENT,
        "Endpoint": record(_ENDPOINT),
        "EndpointWithSecret": record(
            {**_ENDPOINT, "secret": _SECRET, "old_secrets_sign_until": nullable(_MOMENT)},
            optional=("old_secrets_sign_until",),
        ),
        "Delivery": record(_DELIVERY),
        "DeliveryWithAttempts": record({**_DELIVERY, "attempts": {"type": "array", "items": ref("Attempt")}}),
        "Attempt": _ATTEMPT,
        "Replayed": record(
            {
                "replayed": _WHOLE,
                "again": {**_WHOLE, "description": "Deliveries that had ended."},
                "never_queued": {**_WHOLE, "description": "Events that had no delivery there yet."},
                "dry_run": _FLAG,
            }
        ),
        "HourOfStatistics": record(
            {
                "hour": _MOMENT,
                "providers": {"type": "object", "additionalProperties": _SUMS},
                "delivery_attempts": record({"delivered": _WHOLE, "failed": _WHOLE}),
            }
        ),
        "PausedProvider": record({"name": _text(), "paused": nullable(record({"reason": _text(), "since": _MOMENT}))}),
        "DegradedProvider": record({"name": _text(), "lost_callbacks": _NUMBER, "jobs": _WHOLE}),
    }
    for model in (NewEndpoint, EndpointChange, Rotation, Trial, BulkReplay, NewPause):
        _add_model(found, model.__name__, model)
    for one in found["EndpointChange"]["properties"].values():
        one.pop("default", None)  # what a change does not name stays as it is
    for name, provider in providers.items():
        _add_model(found, f"{name.capitalize()}Options", provider.Options)
        for suffix, image in (("Job", ref("ImageSource")), ("JobPart", None)):
            found[f"New{name.capitalize()}{suffix}"] = _new_job(name, image)
    found["ImageSource"] = {
        "oneOf": [
            record({"url": _text("Fetched once, now.", minLength=1)}, additionalProperties=False),
            record({"base64": _text(contentEncoding="base64", minLength=1)}, additionalProperties=False),
        ]
    }
    for suffix in ("Job", "JobPart"):
        names = {name: f"New{name.capitalize()}{suffix}" for name in providers}
        found[f"New{suffix}"] = {
            "oneOf": [ref(one) for one in names.values()],
            "discriminator": {
                "propertyName": "provider",
                "mapping": {name: f"#/components/schemas/{one}" for name, one in names.items()},
            },
        }
    for name in EVENT_TYPES:
        found[told_name(name)] = record({"type": {"const": name}, "timestamp": _MOMENT, "data": _subject(name)})
    return found


def told_name(event_type: str) -> str:
    """`job.images_kept` is `JobImagesKept`."""
    return "".join(part.capitalize() for part in event_type.replace(".", "_").split("_")) + "Event"


def _subject(event_type: str) -> Schema:
    if event_type in JOB_EVENTS:
        return ref("Job")
    if event_type in ENDPOINT_EVENTS:
        return ref("Endpoint")
    assert event_type in PROVIDER_EVENTS
    return ref("DegradedProvider" if event_type == "provider.callbacks_degraded" else "PausedProvider")


def _new_job(provider: str, image: Schema | None) -> Schema:
    properties: dict[str, Schema] = {
        "provider": {"const": provider},
        "options": nullable(ref(f"{provider.capitalize()}Options")),
        "metadata": nullable({**_ANYTHING, "description": "Yours; at most 16 KiB of JSON."}),
        "notify_url": nullable(_text("Told of the job's end.", maxLength=2000)),
    }
    if image is not None:
        properties["image"] = image
    return record(properties, optional=("options", "metadata", "notify_url"), additionalProperties=False)


def _add_model(found: dict[str, Schema], name: str, model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=_REFERENCE)
    found.update(schema.pop("$defs", {}))
    found[name] = schema
