"""Models that check and describe requests about endpoints, deliveries and providers, and the schemas of options."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from receiver.domain.events import EVENT_TYPES
from receiver.web.problems import Problem
from submitter.provider import ProviderOptions
from submitter.provider_settings import parse_rate
from submitter.providers import PROVIDERS
from submitter.signatures import parse_secret

Model = TypeVar("Model", bound=BaseModel)

LONGEST_TIMEOUT_SECONDS = 60.0
LONGEST_OVERLAP_SECONDS = 7 * 86400.0
_DAY_SECONDS = 86400.0


def _good_rate(value: str) -> str:
    rate = parse_rate(value)
    if rate.count > 100_000 or rate.seconds > 86400:
        raise ValueError("at most 100000 in at most 86400 seconds")
    return value.strip()


def _good_secret(value: str) -> str:
    parse_secret(value)
    return value.strip()


def _good_type(value: str) -> str:
    if value not in EVENT_TYPES:
        raise ValueError(f"there is no event {value[:100]!r}")
    return value


def _good_provider(value: str) -> str:
    if value not in PROVIDERS:
        raise ValueError(f"there is no provider {value[:100]!r}")
    return value


EventType = Annotated[str, AfterValidator(_good_type), Field(json_schema_extra={"enum": list(EVENT_TYPES)})]
ProviderName = Annotated[str, AfterValidator(_good_provider), Field(json_schema_extra={"enum": list(PROVIDERS)})]
WebhookSecret = Annotated[str, AfterValidator(_good_secret), Field(max_length=200, pattern=r"^whsec_")]
RateText = Annotated[str, AfterValidator(_good_rate), Field(max_length=40, examples=["20/60"])]


def _text_only(value: Any) -> Any:
    if not isinstance(value, str) or value.isdigit():
        raise ValueError("write it as RFC 3339 with a zone, for example 2026-01-31T12:00:00Z")
    return value


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_text_only, json_schema_input_type=str)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EndpointChange(_Asked):
    """A change of an endpoint."""

    url: str = Field(
        default_factory=str, min_length=1, max_length=2000, description="https, or http inside RECEIVER_ALLOW_NETWORKS."
    )
    event_types: list[EventType] = Field([], max_length=100, description="Empty: all events.")
    providers: list[ProviderName] = Field([], max_length=20, description="Empty: events about any provider, or none.")
    description: str = Field("", max_length=500)
    enabled: bool = True
    timeout_seconds: float = Field(15.0, ge=0.1, le=LONGEST_TIMEOUT_SECONDS, description="For a whole attempt.")
    concurrency: int = Field(10, ge=1, le=100, description="Attempts at once.")
    rate: RateText | None = Field(None, description="Limit on attempts, as `count/seconds`. Null: no limit.")

    def settings(self, *, only_given: bool = False) -> dict[str, Any]:
        """Return the settings by the names of an endpoint's fields."""
        values = self.model_dump(exclude={"secret"}, exclude_unset=only_given)
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


class NewEndpoint(EndpointChange):
    """A new endpoint."""

    url: str = Field(min_length=1, max_length=2000, description="https, or http inside RECEIVER_ALLOW_NETWORKS.")
    secret: WebhookSecret | None = Field(None, description="Your own secret; generated if not given.")


class Rotation(_Asked):
    """A change of an endpoint's secret."""

    overlap_seconds: float = Field(
        _DAY_SECONDS, ge=0, le=LONGEST_OVERLAP_SECONDS, description="How long the old secret signs as well."
    )
    secret: WebhookSecret | None = Field(None, description="Your own secret; generated if not given.")


class Trial(_Asked):
    """An example event to send."""

    event_type: EventType = "job.succeeded"


class NewPause(_Asked):
    """A pause of a provider."""

    reason: str = Field(
        "paused by an operator", min_length=1, max_length=300, description="Shown wherever the pause is."
    )


class BulkReplay(_Asked):
    """A selection of deliveries to send again. Without fields: all failures."""

    endpoint_id: str | None = Field(None, max_length=64)
    since: Moment | None = Field(
        None,
        description="Everything since that time, including events never queued because no endpoint was enabled.",
    )
    state: Literal["given_up", "delivered", "all"] | None = Field(
        None, description="Default: `given_up`; with `since`: `all`."
    )
    dry_run: bool = Field(False, description="Only count.")

    def states(self) -> tuple[str, ...]:
        """Return the states as the delivery log takes them."""
        if self.state is None:
            return ()
        return ("given_up", "delivered") if self.state == "all" else (self.state,)


def validated(model: type[Model], document: dict[str, Any]) -> Model:
    """Parse *document* as a *model*. Raises `Problem` 422 with the field and its accepted values."""
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        path = ".".join(str(part)[:60] for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise Problem(
                422, "unknown_field", f"there is no field {path!r}", field=path, remedy=f"the fields are {known}"
            ) from exc
        detail = error["msg"].removeprefix("Value error, ")
        name = str(error["loc"][0])
        remedy = f"{'add' if error['type'] == 'missing' else 'change'} {name}: {_accepted(model, name)}"
        raise Problem(422, "invalid_field", f"{path}: {detail}", field=path, remedy=remedy) from exc


def _accepted(model: type[BaseModel], name: str) -> str:
    """Describe the accepted values of a field."""
    schema = model.model_json_schema()["properties"][name]
    words = " or ".join(_words(choice) for choice in schema.get("anyOf", [schema]))
    return f"{words} ({description.rstrip('.')})" if (description := schema.get("description")) else words


def _words(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    kind = str(schema.get("type"))
    if kind == "array":
        return f"a list of at most {schema['maxItems']}, each {_words(schema['items'])}"
    words = {"string": "text", "number": "a number", "integer": "a whole number", "boolean": "true or false"}
    least, most = schema.get("minimum"), schema.get("maximum")
    limits = "" if least is None else f" from {least:g} to {most:g}"
    if longest := schema.get("maxLength"):
        limits = f" of at most {longest} characters"
    example = f" such as {examples[0]}" if (examples := schema.get("examples")) else ""
    return words.get(kind, kind) + limits + example


def moment_of(text: str) -> datetime:
    """Parse a time as people write it: RFC 3339, or a date; without a zone it is UTC."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@cache
def options_schema(options: type[ProviderOptions]) -> Mapping[str, Any]:
    """Return the JSON Schema of a provider's options. It is made once: pydantic needs milliseconds for it."""
    return options.model_json_schema()
