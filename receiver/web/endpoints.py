"""Endpoints: `/v1/endpoints`, behind a bearer token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from receiver.domain.endpoints import Endpoint, SigningSecret
from receiver.domain.entity import iso
from receiver.domain.ids import new_id
from receiver.net.guard import Guard
from receiver.store.delivery_log import DeliveryLog
from receiver.store.endpoints import Endpoints
from receiver.web.admission import check_target
from receiver.web.auth import Bearer
from receiver.web.body import small_json
from receiver.web.deliveries import delivery_answer
from receiver.web.examples import example_data
from receiver.web.problems import Problem
from receiver.web.query_params import known_only, limit_of, place_of
from receiver.web.schemas import EndpointChange, NewEndpoint, Rotation, Trial, validated
from submitter.signatures import new_secret

BY_OPERATOR = "switched off by an operator"


@dataclass(frozen=True, slots=True)
class EndpointsApi:
    """`/v1/endpoints`. A secret is shown when it is created and never again."""

    endpoints: Endpoints
    log: DeliveryLog
    guard: Guard
    base_url: Callable[[], str]
    changed: Callable[[], None]
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def routes(self, bearer: Bearer) -> list[Route]:
        guard = bearer.guard
        return [
            Route("/v1/endpoints", guard(self.list), methods=["GET"]),
            Route("/v1/endpoints", guard(self.create), methods=["POST"]),
            Route("/v1/endpoints/{id}", guard(self.show), methods=["GET"]),
            Route("/v1/endpoints/{id}", guard(self.update), methods=["PATCH"]),
            Route("/v1/endpoints/{id}", guard(self.replace), methods=["PUT"]),
            Route("/v1/endpoints/{id}", guard(self.remove), methods=["DELETE"]),
            Route("/v1/endpoints/{id}/test", guard(self.test), methods=["POST"]),
            Route("/v1/endpoints/{id}/rotate-secret", guard(self.rotate), methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        known_only(request, "cursor", "limit")
        limit = limit_of(request)
        found = await self.endpoints.page(after=place_of(request, "ep") or "", limit=limit + 1)
        page = found[:limit]
        following = page[-1].id if len(found) > limit else None
        return JSONResponse({"items": [endpoint.to_json() for endpoint in page], "next": following})

    async def create(self, request: Request) -> Response:
        asked = validated(NewEndpoint, await small_json(request))
        await self._check_url(asked.url)
        secret = asked.secret or new_secret()
        endpoint = Endpoint(
            id=new_id("ep"), created_at=self.clock(), secrets=(SigningSecret(secret),), **asked.settings()
        )
        if not endpoint.enabled:
            endpoint = endpoint.switched(on=False, reason=BY_OPERATOR)
        await self.endpoints.add(endpoint)
        headers = {"location": f"{self.base_url()}/v1/endpoints/{endpoint.id}"}
        return JSONResponse({**endpoint.to_json(), "secret": secret}, 201, headers=headers)

    async def show(self, request: Request) -> Response:
        return JSONResponse((await self._found(request)).to_json())

    async def update(self, request: Request) -> Response:
        """`PATCH`: change the given fields and leave the others."""
        asked = validated(EndpointChange, await small_json(request))
        if "url" in asked.model_fields_set:
            await self._check_url(asked.url)
        return await self._changed(request, asked.settings(only_given=True))

    async def replace(self, request: Request) -> Response:
        """`PUT`: replace the settings; fields that are not given get their defaults. The secret stays."""
        asked = validated(NewEndpoint, await small_json(request))
        if asked.secret is not None:
            raise Problem(
                422,
                "invalid_field",
                "a secret changes by rotation only",
                field="secret",
                remedy="POST /v1/endpoints/{id}/rotate-secret",
            )
        await self._check_url(asked.url)
        return await self._changed(request, asked.settings())

    async def remove(self, request: Request) -> Response:
        if not await self.endpoints.remove(request.path_params["id"], self.clock()):
            raise _no_such_endpoint()
        self.changed()
        return Response(status_code=204)

    async def test(self, request: Request) -> Response:
        """Queue an example event like a real one, and answer with its delivery."""
        endpoint = await self._found(request)
        asked = validated(Trial, await small_json(request))
        data = example_data(asked.event_type, endpoint, self.clock(), base_url=self.base_url())
        delivery_id = await self.log.send_example(endpoint.id, asked.event_type, data, self.clock())
        self.changed()
        return await delivery_answer(self.log, delivery_id, self.base_url())

    async def rotate(self, request: Request) -> Response:
        asked = validated(Rotation, await small_json(request))
        secret, now = asked.secret or new_secret(), self.clock()
        overlap = timedelta(seconds=asked.overlap_seconds)
        rotated = await self.endpoints.change(
            request.path_params["id"], lambda endpoint: endpoint.rotated(secret, now, overlap=overlap), now
        )
        if rotated is None:
            raise _no_such_endpoint()
        self.changed()
        return JSONResponse({**rotated.to_json(), "secret": secret, "old_secrets_sign_until": iso(now + overlap)})

    async def _changed(self, request: Request, settings: dict[str, Any]) -> Response:
        def change(before: Endpoint) -> Endpoint:
            after = replace(before, **settings)
            if after.enabled != before.enabled:
                return after.switched(on=after.enabled, reason=BY_OPERATOR)
            return after

        after = await self.endpoints.change(request.path_params["id"], change, self.clock())
        if after is None:
            raise _no_such_endpoint()
        self.changed()
        return JSONResponse(after.to_json())

    async def _check_url(self, url: str) -> None:
        await check_target(self.guard, url, field="url", code="invalid_url")

    async def _found(self, request: Request) -> Endpoint:
        found = await self.endpoints.get(request.path_params["id"])
        if found is None:
            raise _no_such_endpoint()
        return found


def _no_such_endpoint() -> Problem:
    return Problem(
        404, "no_such_endpoint", "there is no such endpoint", field="id", remedy="GET /v1/endpoints lists them"
    )
