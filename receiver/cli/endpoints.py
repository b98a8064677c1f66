"""`receiver endpoints`: list, add, show, test, rotate-secret, enable, disable, remove."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from receiver.cli.open_database import open_database
from receiver.cli.sandboxed import as_served
from receiver.domain.endpoints import Endpoint, SigningSecret
from receiver.domain.entity import iso
from receiver.domain.ids import new_id
from receiver.net.guard import Guard
from receiver.settings import load
from receiver.store.database import Database
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from receiver.web.admission import check_target
from receiver.web.endpoints import BY_OPERATOR
from receiver.web.examples import example_data
from receiver.web.problems import Problem
from receiver.web.schemas import LONGEST_OVERLAP_SECONDS, NewEndpoint, Trial, validated
from submitter.printing import Listing, failed, print_fields, print_json, print_table, say
from submitter.signatures import new_secret

endpoints = typer.Typer(no_args_is_help=True, help="List, add, test and change endpoints: where events go.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EndpointId = Annotated[str, typer.Argument(help="The endpoint's id, ep_…")]


@endpoints.command(name="list")
def list_endpoints(as_json: AsJson = False) -> None:
    """List all endpoints."""

    async def run() -> None:
        async with open_database() as database:
            found = await Endpoints(database).all()
        if as_json:
            print_json({"items": [endpoint.to_json() for endpoint in found]})
            return
        table = Listing("endpoint", "state", "url", "events", "providers")
        for endpoint in found:
            state = (
                "failing"
                if endpoint.failing_since and endpoint.enabled
                else "enabled"
                if endpoint.enabled
                else "disabled"
            )
            events, providers = ", ".join(endpoint.event_types) or "all", ", ".join(endpoint.providers) or "all"
            table.add_row(endpoint.id, state, endpoint.url, events, providers)
        print_table(table, empty="no endpoints; `receiver endpoints add URL` adds one")

    asyncio.run(run())


@endpoints.command()
def add(
    url: Annotated[str, typer.Argument(help="https, or http inside RECEIVER_ALLOW_NETWORKS.")],
    event: Annotated[list[str] | None, typer.Option(help="Only this event; may be repeated. Default: all.")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="Only about this provider; may be repeated.")] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds for one attempt.")] = 15.0,
    concurrency: Annotated[int, typer.Option(help="Attempts at once.")] = 10,
    rate: Annotated[str | None, typer.Option(help="Limit on attempts, as count/seconds.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an endpoint. Its secret is shown now and never again."""

    async def run() -> None:
        document = {
            "url": url,
            "event_types": event or [],
            "providers": provider or [],
            "description": description,
            "timeout_seconds": timeout,
            "concurrency": concurrency,
            "rate": rate,
        }
        try:
            asked = validated(NewEndpoint, document)
            settings, _ = as_served(*load())
            await check_target(Guard(settings.allow_networks), url, field="url", code="invalid_url")
        except Problem as exc:
            raise failed(f"{exc.detail}; {exc.remedy}") from exc
        secret = new_secret()
        made = Endpoint(
            new_id("ep"), created_at=datetime.now(UTC), secrets=(SigningSecret(secret),), **asked.settings()
        )
        async with open_database() as database:
            await Endpoints(database).add(made)
        _print_endpoint(made, as_json, secret=secret)

    asyncio.run(run())


@endpoints.command()
def show(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Show an endpoint, without its secret."""

    async def run() -> None:
        async with open_database() as database:
            _print_endpoint(await _found(database, endpoint_id), as_json)

    asyncio.run(run())


@endpoints.command()
def test(
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="Which event the example is of.")] = "job.succeeded",
    wait: Annotated[float, typer.Option(help="Seconds to wait for the running receiver to deliver it.")] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Send an example event. Exit status 1: it was not delivered."""

    async def run() -> None:
        now = datetime.now(UTC)
        try:
            validated(Trial, {"event_type": event})
        except Problem as exc:
            raise failed(exc.detail) from exc
        async with open_database() as database:
            endpoint, log = await _found(database, endpoint_id), DeliveryLog(database)
            data = example_data(event, endpoint, now, base_url=as_served(*load())[0].public_url or "")
            delivery_id = await log.send_example(endpoint.id, event, data, now)
            until = now + timedelta(seconds=wait)
            while (found := await log.get(delivery_id)) and found[0].state == "pending":
                if datetime.now(UTC) > until:
                    raise failed(f"{delivery_id} still waits; is `receiver serve` running?")
                await asyncio.sleep(0.1)
        assert found is not None
        shown, attempts = found
        if as_json:
            print_json({**shown.to_json(), "attempts": [attempt.to_json() for attempt in attempts]})
        else:
            took = f", after {attempts[-1].seconds:.3f} s" if attempts else ""
            say(f"{shown.id} {shown.state}: {shown.last_error or shown.last_status}{took}")
        if shown.state != "delivered":
            raise typer.Exit(1)

    asyncio.run(run())


@endpoints.command(name="rotate-secret")
def rotate_secret(
    endpoint_id: EndpointId,
    overlap: Annotated[
        float, typer.Option(min=0, max=LONGEST_OVERLAP_SECONDS, help="Seconds that the old secret still signs.")
    ] = 86400.0,
    as_json: AsJson = False,
) -> None:
    """Give it a new secret, shown now and never again; the old one also signs for a while."""
    secret, now = new_secret(), datetime.now(UTC)
    changed = _change(endpoint_id, lambda endpoint: endpoint.rotated(secret, now, overlap=timedelta(seconds=overlap)))
    _print_endpoint(changed, as_json, secret=secret, old_secrets_sign_until=iso(now + timedelta(seconds=overlap)))


@endpoints.command()
def enable(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Send to it again from now on; `receiver replay --endpoint` brings what it missed."""
    _print_endpoint(_change(endpoint_id, lambda endpoint: endpoint.switched(on=True)), as_json)


@endpoints.command()
def disable(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Send nothing to it; what waits for it is given up, listed and replayable."""
    _print_endpoint(_change(endpoint_id, lambda endpoint: endpoint.switched(on=False, reason=BY_OPERATOR)), as_json)


@endpoints.command()
def remove(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Forget it; what waits for it is dropped."""

    async def run() -> None:
        async with open_database() as database:
            if not await Endpoints(database).remove(endpoint_id, datetime.now(UTC)):
                raise failed(f"there is no endpoint {endpoint_id}")
        if as_json:
            print_json({"id": endpoint_id, "removed": True})
        else:
            typer.echo(f"{endpoint_id} removed")

    asyncio.run(run())


def _change(endpoint_id: str, change: Callable[[Endpoint], Endpoint]) -> Endpoint:
    async def run() -> Endpoint:
        async with open_database() as database:
            changed = await Endpoints(database).change(endpoint_id, change, datetime.now(UTC))
        if changed is None:
            raise failed(f"there is no endpoint {endpoint_id}")
        return changed

    return asyncio.run(run())


async def _found(database: Database, endpoint_id: str) -> Endpoint:
    found = await Endpoints(database).get(endpoint_id)
    if found is None:
        raise failed(f"there is no endpoint {endpoint_id}")
    return found


def _print_endpoint(endpoint: Endpoint, as_json: bool, **once: str | None) -> None:
    """Print an endpoint, with the values that are shown only *once*: its secret, and how long earlier ones sign."""
    shown = endpoint.to_json() | once
    if as_json:
        print_json(shown)
        return
    print_fields(shown)
    if "secret" in once:
        typer.echo("The secret is not shown again.", err=True)
