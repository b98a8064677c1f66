"""`/openapi.json`: valid, complete, and true of what is really served."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from starlette.routing import Route

from receiver.app import Receiver
from receiver.domain.events import EVENT_TYPES
from receiver.settings import load
from receiver.web.openapi import describe
from submitter.providers import PROVIDERS
from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import live, submit, wait_for_state
from tests.support.running_receiver import running_receiver
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

DESCRIPTION = describe(PROVIDERS)


def check(name: str, value: Any) -> None:
    """*value* is a *name* as the description has it."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DESCRIPTION["components"]}
    errors = [error.message for error in OAS31Validator(schema).iter_errors(value)]
    assert errors == [], json.dumps(value)[:300]


def check_page(name: str, page: Any) -> None:
    assert set(page) == {"items", "next"}
    assert page["items"]
    for item in page["items"]:
        check(name, item)


def test_the_description_validates() -> None:
    validate(DESCRIPTION)
    assert DESCRIPTION["openapi"].startswith("3.1")
    assert set(DESCRIPTION["webhooks"]) == set(EVENT_TYPES)


async def test_every_route_is_described_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    receiver = Receiver(*load(data_dir=tmp_path / "data"))
    async with receiver.app.router.lifespan_context(receiver.app):
        routes = [route for route in receiver.app.routes if isinstance(route, Route) and route.include_in_schema]
    served = {
        (route.path.replace(":int", "").replace(":path", ""), method.lower())
        for route in routes
        for method in route.methods or set()
    }
    described = {(path, method) for path, item in DESCRIPTION["paths"].items() for method in item}
    assert described <= served
    # HEAD is there wherever GET is; it is described where providers use it.
    assert {(path, method) for path, method in served - described if method != "head"} == set()
    assert {path for path, method in described if method == "head"} == {
        "/callbacks/{provider}/{token}",
        "/inputs/{token}",
    }


async def test_a_method_that_is_not_for_a_path_is_reported_all_that_are(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        for path, item in DESCRIPTION["paths"].items():
            answer = await here.client.request("OPTIONS", re.sub(r"{\w+}", "0", path))
            assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed"), path
            methods = {method.upper() for method in item} | ({"HEAD"} if "get" in item else set())
            assert set(answer.headers["allow"].split(", ")) == methods, path


async def test_lists_take_the_parameters_that_are_described_and_refuse_others(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job()
        for path in ("/v1/jobs", "/v1/events", "/v1/endpoints", "/v1/deliveries", "/v1/jobs/{id}/evidence"):
            parameters = DESCRIPTION["paths"][path]["get"]["parameters"]
            described = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
            url = path.replace("{id}", job.id)
            for name in described:
                answer = await here.client.get(url, params={name: ""} if name != "limit" else {name: "1"})
                assert answer.status_code == 200, (path, name, answer.text)
            answer = await here.client.get(url, params={"undelivred": "true"})
            problem = answer.json()
            assert (answer.status_code, problem["code"], problem["field"]) == (422, "unknown_parameter", "undelivred")
            named = problem["remedy"].removeprefix("the parameters are ").split(", ")
            assert sorted(named) == sorted(described), path


def test_a_change_of_an_endpoint_has_no_defaults() -> None:
    """Fields that are not given stay; only creation and replacement use defaults."""
    models = DESCRIPTION["components"]["schemas"]
    assert [name for name, parameter in models["EndpointChange"]["properties"].items() if "default" in parameter] == []
    assert models["NewEndpoint"]["properties"]["enabled"]["default"] is True


def test_every_answer_to_a_callback_is_described() -> None:
    described = DESCRIPTION["paths"]["/callbacks/{provider}/{token}"]["post"]["responses"]
    assert set(described) == {"200", "400", "401", "404", "408", "413", "429", "503"}


def test_every_parameter_in_a_path_is_described() -> None:
    for path, item in DESCRIPTION["paths"].items():
        for method, operation in item.items():
            named = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"}
            assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}, (method, path)


def test_every_event_carries_what_the_description_says(tmp_path: Path) -> None:
    """Every entry under `webhooks` has the schema of its own body."""
    for name, item in DESCRIPTION["webhooks"].items():
        schema = item["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        reported = DESCRIPTION["components"]["schemas"][schema.rsplit("/", 1)[1]]
        assert reported["properties"]["type"] == {"const": name}


async def test_real_answers_are_as_described(tmp_path: Path) -> None:
    subscriber = Subscriber({"/bad": [500]})
    async with subscriber.serve() as origin, live(tmp_path) as (receiver, _), receiver.client() as client:
        served = await client.get("/openapi.json", headers={"authorization": ""})
        assert served.json() == DESCRIPTION

        made = (await client.post("/v1/endpoints", json={"url": f"{origin}/bad", "rate": "50/1"})).json()
        check("EndpointWithSecret", made)
        document: dict[str, Any] = {"provider": "freepik", "options": {"scale_factor": "2x"}, "metadata": {"a": 1}}
        check("NewFreepikJob", {**document, "image": {"url": "https://example.com/in.png"}})
        check("NewJob", {**document, "image": {"base64": "AAAA"}})
        job = await submit(client, picture=picture_bytes(64, 64), **document)
        check("Job", job)
        check("Job", await wait_for_state(client, job["id"], kept=True))
        check_page("Job", (await client.get("/v1/jobs")).json())
        check_page("Evidence", (await client.get(f"/v1/jobs/{job['id']}/evidence")).json())
        check_page("Provider", (await client.get("/v1/providers")).json())
        events = (await client.get("/v1/events")).json()
        check_page("Event", events)
        check_page("Endpoint", (await client.get("/v1/endpoints")).json())
        path = f"/v1/endpoints/{made['id']}"
        check("EndpointWithSecret", (await client.post(f"{path}/rotate-secret")).json())
        check("Endpoint", (await client.patch(path, json={"concurrency": 2})).json())
        for event_type in EVENT_TYPES:
            answer = await client.post(f"{path}/test", json={"event_type": event_type})
            check("DeliveryWithAttempts", answer.json())
        await eventually(lambda: len(subscriber.seen) >= len(EVENT_TYPES) + 4)
        for seen in subscriber.seen:
            body = json.loads(seen.body)
            schema = DESCRIPTION["webhooks"][body["type"]]["post"]["requestBody"]["content"]["application/json"]
            check(schema["schema"]["$ref"].rsplit("/", 1)[1], body)
        deliveries = (await client.get("/v1/deliveries")).json()
        check_page("Delivery", deliveries)
        replay = await client.post(f"/v1/deliveries/{deliveries['items'][0]['id']}/replay")
        check("DeliveryWithAttempts", replay.json())
        check("Replayed", (await client.post("/v1/deliveries/replay", json={"dry_run": True})).json())
        for problem in (
            await client.get("/v1/jobs/job_none"),
            await client.get("/v1/jobs", headers={"authorization": "Bearer nobody"}),
            await client.post("/v1/endpoints", content=b"{"),
            await client.get("/v1/events", params={"type": "x"}),
        ):
            assert problem.headers["content-type"] == "application/problem+json"
            check("Problem", problem.json())
