"""The operations of `/v1`, by resource, for `/openapi.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from receiver.domain.deliveries import DeliveryState
from receiver.domain.events import EVENT_TYPES
from receiver.web.openapi_operations import (
    JSON,
    MOMENT,
    STREAM,
    TEXT,
    body_of,
    operation,
    optional_flag,
    paging,
    path_parameter,
    query_list,
    query_parameter,
)
from receiver.web.openapi_schemas import page_of, ref
from submitter.provider import Provider
from submitter.vocabulary import State

_NEW_JOB = {
    "required": True,
    "content": {
        JSON: {"schema": ref("NewJob")},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "job": ref("NewJobPart"),
                    "image": {"type": "string", "contentMediaType": "application/octet-stream"},
                },
                "required": ["job", "image"],
            },
            "encoding": {"job": {"contentType": JSON}, "image": {"contentType": "image/*"}},
        },
    },
}


_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Posts with the same key and content are one job; kept 24 h.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}


def jobs_paths(providers: Mapping[str, type[Provider]]) -> dict[str, Any]:
    names, job = list(providers), ref("Job")
    by_id = path_parameter("id")
    abandon, twice = optional_flag("abandon"), optional_flag("may_pay_twice")
    listed = [
        query_list("state", State),
        query_list("provider", names),
        query_parameter("since", MOMENT, "Created at this time or later."),
        query_parameter("until", MOMENT, "Created before this time."),
        query_parameter(
            "q", {**TEXT, "maxLength": 200}, "Text in ids, the file's name or metadata; a page may then be short."
        ),
        *paging("job"),
    ]
    return {
        "/v1/jobs": {
            "get": operation("jobs", "List jobs, newest first.", {200: page_of("Job"), 422: None}, listed),
            "post": operation(
                "jobs",
                "Submit a job.",
                {202: job, 200: job, 400: None, 409: None, 413: None, 415: None, 422: None},
                [_IDEMPOTENCY_KEY],
                body=_NEW_JOB,
            ),
        },
        "/v1/lost": {
            "get": operation(
                "jobs",
                "List jobs whose paid results could not be kept, newest first.",
                {200: page_of("LostJob"), 422: None},
                paging("job"),
            )
        },
        "/v1/jobs/{id}": {"get": operation("jobs", "Get a job.", {200: job, 404: None}, [by_id])},
        "/v1/jobs/{id}/evidence": {
            "get": operation(
                "jobs",
                "List the evidence of a job, unaltered.",
                {200: page_of("Evidence"), 404: None, 422: None},
                [by_id, *paging()],
            )
        },
        "/v1/jobs/{id}/cancel": {
            "post": operation(
                "jobs",
                "Cancel a queued job; with `abandon`, stop waiting for one that was sent.",
                {200: job, 400: None, 404: None, 409: None, 413: None, 422: None},
                [by_id],
                body=abandon,
            )
        },
        "/v1/jobs/{id}/resubmit": {
            "post": operation(
                "jobs",
                "Submit a new job with the same input and options.",
                {202: job, 200: job, 400: None, 404: None, 409: None, 413: None, 422: None},
                [by_id, _IDEMPOTENCY_KEY],
                body=twice,
            )
        },
        "/v1/jobs/{id}/poll": {
            "post": operation(
                "jobs",
                "Poll its provider now; `polled_at` changes once that has happened.",
                {202: job, 404: None, 409: None},
                [by_id],
            )
        },
        "/v1/stats": {
            "get": operation(
                "jobs",
                "List hourly totals, newest first.",
                {200: page_of("HourOfStatistics"), 422: None},
                paging(),
            )
        },
    }


def images_paths() -> dict[str, Any]:
    by_id, nth = path_parameter("id"), path_parameter("n", {"type": "integer", "minimum": 0})
    return {
        "/v1/jobs/{id}/images/{n}": {
            "get": operation("jobs", "Get the kept copy of an image.", {200: "image/*", 404: None}, [by_id, nth])
        },
        "/v1/jobs/{id}/images/{n}/thumbnail": {
            "get": operation("jobs", "Get a small WEBP of an image.", {200: "image/webp", 404: None}, [by_id, nth])
        },
        "/v1/jobs/{id}/input": {
            "get": operation("jobs", "Get the input, as long as it is kept.", {200: "image/*", 404: None}, [by_id])
        },
        "/v1/jobs/{id}/input/thumbnail": {
            "get": operation("jobs", "Get a small WEBP of the input.", {200: "image/webp", 404: None}, [by_id])
        },
    }


def providers_paths(names: Sequence[str]) -> dict[str, Any]:
    return {
        "/v1/providers/{name}/pause": {
            "post": operation(
                "providers",
                "Send nothing to a provider until it is resumed; no job probes it.",
                {200: {"type": "object"}, 400: None, 404: None, 413: None, 422: None},
                [path_parameter("name", {**TEXT, "enum": names})],
                body=body_of("NewPause", required=False),
            )
        },
        "/v1/providers": {
            "get": operation("providers", "List providers, their options and queues.", {200: page_of("Provider")})
        },
        "/v1/providers/{name}/resume": {
            "post": operation(
                "providers",
                "Send to a paused provider again.",
                {200: {"type": "object"}, 404: None},
                [path_parameter("name", {**TEXT, "enum": names})],
            )
        },
    }


def events_paths(providers: Sequence[str]) -> dict[str, Any]:
    cursor = {"type": "string", "pattern": "^[0-9]{1,18}$"}
    resume = "The last position that was seen; for streams."
    listed = operation(
        "events",
        "Events in the order of their positions: a page, or with `Accept: text/event-stream` as they happen.",
        {200: page_of("Event"), 409: None, 422: None},
        [
            query_list("type", EVENT_TYPES),
            query_list("provider", providers),
            query_parameter("job", TEXT),
            query_parameter("after", cursor, "Above this position; a stream without it begins with new events."),
            query_parameter("last_event_id", cursor, resume),
            {"name": "Last-Event-ID", "in": "header", "description": resume, "schema": cursor},
            *paging(most=500),
        ],
    )
    listed["responses"]["200"]["content"][STREAM] = {
        "schema": {**TEXT, "description": "`id`: position, `event`: type, `webhook-id`: event id, `data`: the body."}
    }
    return {"/v1/events": {"get": listed}}


def endpoints_paths() -> dict[str, Any]:
    by_id, with_secret = path_parameter("id"), ref("EndpointWithSecret")

    def changing(summary: str, model: str) -> dict[str, Any]:
        answers = {200: ref("Endpoint"), 400: None, 404: None, 413: None, 422: None}
        return operation("endpoints", summary, answers, [by_id], body=body_of(model))

    return {
        "/v1/endpoints": {
            "get": operation(
                "endpoints", "List endpoints, oldest first.", {200: page_of("Endpoint"), 422: None}, paging("ep")
            ),
            "post": operation(
                "endpoints",
                "Create an endpoint; only this answer includes its secret.",
                {201: with_secret, 400: None, 413: None, 422: None},
                body=body_of("NewEndpoint"),
            ),
        },
        "/v1/endpoints/{id}": {
            "get": operation("endpoints", "Get an endpoint.", {200: ref("Endpoint"), 404: None}, [by_id]),
            "patch": changing("Change the given fields.", "EndpointChange"),
            "put": changing("Set everything; fields that are not given get their defaults.", "NewEndpoint"),
            "delete": operation("endpoints", "Remove an endpoint.", {204: "", 404: None}, [by_id]),
        },
        "/v1/endpoints/{id}/test": {
            "post": operation(
                "endpoints",
                "Send an example event in the same way as real ones.",
                {202: ref("DeliveryWithAttempts"), 400: None, 404: None, 413: None, 422: None},
                [by_id],
                body=body_of("Trial", required=False),
            )
        },
        "/v1/endpoints/{id}/rotate-secret": {
            "post": operation(
                "endpoints",
                "Rotate the secret; the old one also signs for a while.",
                {200: with_secret, 400: None, 404: None, 413: None, 422: None},
                [by_id],
                body=body_of("Rotation", required=False),
            )
        },
    }


def deliveries_paths() -> dict[str, Any]:
    shown, by_id = ref("DeliveryWithAttempts"), path_parameter("id")
    filters = [
        query_list("state", DeliveryState),
        query_parameter(
            "undelivered", {**TEXT, "enum": ["true", "false"]}, "Only those tried or ended, and not delivered."
        ),
        query_parameter("fault", {**TEXT, "enum": ["ours", "theirs"]}),
        query_parameter("endpoint", TEXT),
        query_parameter("job", TEXT),
        query_parameter("event", TEXT),
        query_list("type", EVENT_TYPES),
    ]
    return {
        "/v1/deliveries": {
            "get": operation(
                "deliveries",
                "List deliveries, newest first.",
                {200: page_of("Delivery"), 422: None},
                [*filters, *paging("dlv")],
            )
        },
        "/v1/deliveries/replay": {
            "post": operation(
                "deliveries",
                "Deliver again: all failures, an endpoint's, or everything since a given time.",
                {202: ref("Replayed"), 200: ref("Replayed"), 400: None, 409: None, 413: None, 422: None},
                body=body_of("BulkReplay", required=False),
            )
        },
        "/v1/deliveries/{id}": {
            "get": operation("deliveries", "Get a delivery and its attempts.", {200: shown, 404: None}, [by_id])
        },
        "/v1/deliveries/{id}/replay": {
            "post": operation(
                "deliveries",
                "Deliver it again, with the same event id.",
                {202: shown, 404: None, 409: None},
                [by_id],
            )
        },
    }
