"""
The shapes of the public surface, as JSON Schema.

The shapes of requests come from their models, those of answers from the entities; the shapes written out here belong to
neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from receiver.domain.deliveries import Attempt, DeliveryView, Replayed
from receiver.domain.endpoints import Endpoint
from receiver.domain.entity import Schema, nullable, schema_of
from receiver.domain.events import ENDPOINT_EVENTS, EVENT_TYPES, JOB_EVENTS, PROVIDER_EVENTS, Event
from receiver.domain.evidence import Evidence
from receiver.domain.jobs import Job, KeptImage, WaitingFor
from receiver.web.schemas import BulkReplay, EndpointChange, NewEndpoint, NewPause, Rotation, Trial
from submitter.provider import Provider
from submitter.vocabulary import Trust

_REFERENCE = "#/components/schemas/{model}"


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def page_of(name: str) -> Schema:
    """Return the schema of a page of a list."""
    return record({"items": {"type": "array", "items": ref(name)}, "next": nullable(_text("The next page's cursor."))})


def record(properties: Mapping[str, Schema], *, optional: tuple[str, ...] = (), **more: Any) -> Schema:
    """Return the schema of an object that requires all of *properties* except the *optional* ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, **more}


def _with_optional(schema: Schema, **more: Schema) -> Schema:
    """Return *schema* with additional properties that may be missing."""
    return {**schema, "properties": schema["properties"] | more}


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
_IMAGE = schema_of(
    KeptImage,
    url=_text("The kept copy: GET it with the bearer token once `state` is `kept`."),
    lost_reason=nullable(_text("Why it is no longer available.")),
    scale=nullable({**_NUMBER, "description": "The factor by which it is larger than the input."}),
    upscaled=nullable({**_FLAG, "description": "Whether it is as much larger as requested."}),
    kept=_FLAG,
)
_JOB = schema_of(
    Job,
    images={"type": "array", "items": ref("Image")},
    waiting_for={**nullable(schema_of(WaitingFor)), "description": "Why the job makes no progress."},
)
_EVIDENCE = _with_optional(
    schema_of(
        Evidence,
        headers={"type": "array", "items": {**_TEXTS, "minItems": 2, "maxItems": 2}},
        body=nullable(_text("Null if it is not UTF-8.")),
    ),
    body_base64=_text("There if `body` is null.", contentEncoding="base64"),
)
_PROVIDER = record(
    {
        "name": _text(),
        "title": _text(),
        "configured": _FLAG,
        "capabilities": record(
            {
                "callbacks": _FLAG,
                "pollable": _FLAG,
                "wants_url": _FLAG,
                "takes_files": _FLAG,
                "trust": nullable(_one_of(Trust)),
            }
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
_SECRET = _text("Shown once, and never again.", pattern="^whsec_")
_DRY_RUN = {**_FLAG, "description": "Only counted."}
_PROBLEM = record(
    {
        "type": _text(format="uri"),
        "title": _text(),
        "status": _WHOLE,
        "detail": _text(),
        "code": _text("Stable, for programs."),
        "field": _text("The part of the request that is wrong."),
        "remedy": _text("What to change."),
    },
    optional=("field", "remedy"),
)


def schemas(providers: Mapping[str, type[Provider]]) -> dict[str, Schema]:
    """Return all components."""
    found: dict[str, Schema] = {
        "Problem": _PROBLEM,
        "Image": _IMAGE,
        "Job": _JOB,
        "LostJob": {"allOf": [ref("Job"), record({"reason": nullable(_text("Why not all of its results are kept."))})]},
        "Evidence": _EVIDENCE,
        "Provider": _PROVIDER,
        "Event": schema_of(Event, timestamp=_MOMENT, data=_ANYTHING),
        "Endpoint": schema_of(Endpoint),
        "EndpointWithSecret": _with_optional(schema_of(Endpoint, secret=_SECRET), old_secrets_sign_until=_MOMENT),
        "Delivery": schema_of(DeliveryView),
        "DeliveryWithAttempts": schema_of(DeliveryView, attempts={"type": "array", "items": ref("Attempt")}),
        "Attempt": schema_of(Attempt),
        "Replayed": schema_of(Replayed, replayed=_WHOLE, dry_run=_DRY_RUN),
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
    for changed in found["EndpointChange"]["properties"].values():
        changed.pop("default", None)  # what a change does not name stays as it is
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
            "oneOf": [ref(option) for option in names.values()],
            "discriminator": {
                "propertyName": "provider",
                "mapping": {name: f"#/components/schemas/{option}" for name, option in names.items()},
            },
        }
    for name in EVENT_TYPES:
        found[event_schema_name(name)] = record({"type": {"const": name}, "timestamp": _MOMENT, "data": _subject(name)})
    return found


def event_schema_name(event_type: str) -> str:
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
        "metadata": nullable({**_ANYTHING, "description": "Your own data: at most 16 KiB of JSON."}),
        "notify_url": nullable(_text("Notified of the job's end.", maxLength=2000)),
    }
    if image is not None:
        properties["image"] = image
    return record(properties, optional=("options", "metadata", "notify_url"), additionalProperties=False)


def _add_model(found: dict[str, Schema], name: str, model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=_REFERENCE)
    found.update(schema.pop("$defs", {}))
    found[name] = schema
