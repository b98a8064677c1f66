"""
Entities: dataclasses that are the single description of what is stored and shown.

A field is described once, where it is declared. Its annotation gives the type; `shown` or `stored` give the rest: the
name and description it has in the API, and the width of its column. The columns and row codecs (`store.codecs`), the
JSON (`json_of`) and the OpenAPI schema (`schema_of`) are derived from that when the modules are imported, as source
code that is compiled once: a row or an answer costs as much as with code written by hand.

The types and how they are represented:

    annotation              column                        JSON
    str, int, float         as it is                      as it is
    bool                    integer, 0 or 1               true or false
    datetime                microseconds since 1970       RFC 3339, milliseconds
    Decimal                 text                          text
    a StrEnum               text                          text
    Mapping                 JSON                          object
    tuple[…, ...]           JSON                          array
    bytes                   bytes                         (the caller's: never shown as they are)
    a dataclass             a column for each field of    object
                            it, `name_part`

`X | None` is NULL and null. A dataclass that is None is stored as NULL in all its columns.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_origin

Schema = dict[str, Any]
E = TypeVar("E")
_KEY = "entity"


@dataclass(frozen=True, slots=True)
class _Description:
    shown: bool
    shown_as: str | None = None
    text: str = ""
    length: int | None = None
    big: bool = False
    identifier: bool = False
    column: str | None = None
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


_NOT_SHOWN = _Description(shown=False)


def shown(
    text: str = "",
    *,
    name: str | None = None,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    repr: bool = True,
    **described: Any,
) -> Any:
    """
    A field that the API shows, under *name* if that differs from the field's own; *text* describes it.

    Also: `length` of a text column, or `identifier` for one of our ids; `big` for an integer that may exceed 2³¹;
    `schema`, merged into the JSON Schema; `parts`, for a field that is a dataclass, the same (`length`, `schema`) by
    the name of its field.
    """
    about = _Description(shown=True, shown_as=name, text=text, **described)
    return _field(about, default, default_factory, repr)


def stored(*, default: Any = MISSING, default_factory: Any = MISSING, repr: bool = True, **described: Any) -> Any:
    """A field that is stored and not shown; `column` is its column's name if that differs from the field's own."""
    return _field(_Description(shown=False, **described), default, default_factory, repr)


def _field(about: _Description, default: Any, default_factory: Any, repr: bool) -> Any:
    if default_factory is not MISSING:
        return dataclasses.field(default_factory=default_factory, repr=repr, metadata={_KEY: about})
    return dataclasses.field(default=default, repr=repr, metadata={_KEY: about})


@dataclass_transform(frozen_default=True, field_specifiers=(shown, stored))
def entity(cls: type[E]) -> type[E]:
    """
    A dataclass with slots, whose fields may be `shown` and `stored`. To type checkers it is frozen.

    At run time it is not: a frozen dataclass sets each field past its own guard, which makes it ten times as slow to
    create, and an instance is created for every row that is read.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


# --- Fields ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EntityField:
    """A field as the derived parts see it. *kind* is the annotation without None and without its arguments."""

    name: str
    kind: type
    item: type | None
    """The type of a tuple's items."""
    optional: bool
    column: str
    about: _Description
    parts: tuple[EntityField, ...]
    """The fields of a dataclass."""

    @property
    def key(self) -> str:
        """Its name in JSON."""
        return self.about.shown_as or self.name


@functools.cache
def fields_of(entity: type[Any]) -> tuple[EntityField, ...]:
    """The fields of *entity*, in their order."""
    hints = typing.get_type_hints(entity)
    return tuple(
        _entity_field(field.name, hints[field.name], field.metadata.get(_KEY, _NOT_SHOWN))
        for field in dataclasses.fields(entity)
    )


def _entity_field(name: str, annotation: Any, about: _Description, prefix: str = "") -> EntityField:
    optional = False
    if get_origin(annotation) in (typing.Union, UnionType):
        (annotation,) = (arg for arg in get_args(annotation) if arg is not NoneType)
        optional = True
    kind = get_origin(annotation) or annotation
    item = get_args(annotation)[0] if kind is tuple else None
    column = prefix + (about.column or name)
    parts: tuple[EntityField, ...] = ()
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        parts = tuple(
            _entity_field(
                part.name,
                hints[part.name],
                dataclasses.replace(
                    part.metadata.get(_KEY, _Description(shown=True)), **dict(about.parts.get(part.name, {}))
                ),
                prefix=f"{column}_",
            )
            for part in dataclasses.fields(kind)
        )
    return EntityField(name, kind, item, optional, column, about, parts)


# --- JSON -----------------------------------------------------------------------------------------------------------


def iso(moment: datetime | None) -> str | None:
    """Format a time as RFC 3339 in UTC with milliseconds."""
    if moment is None:
        return None
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")[: -len("+00:00")] + "Z"


def json_of(entity: type) -> Callable[[Any], dict[str, Any]]:
    """A function from an *entity* to its shown fields, as JSON types."""
    shown_fields = [field for field in fields_of(entity) if field.about.shown]
    items = ", ".join(f"{field.key!r}: {_json(field, f'e.{field.name}')}" for field in shown_fields)
    return cast(Callable[[Any], dict[str, Any]], compiled(f"lambda e: {{{items}}}", iso=iso))


def _json(field: EntityField, value: str) -> str:
    """The expression that shows *value*, itself an expression without cost or effects."""
    if field.kind is datetime:
        return f"iso({value})"
    if field.parts:
        shown_as = "{" + ", ".join(f"{part.key!r}: {_json(part, f'{value}.{part.name}')}" for part in field.parts) + "}"
    elif field.kind is Decimal:
        shown_as = f"format({value}, 'f')"
    elif issubclass(field.kind, StrEnum):
        shown_as = f"{value}.value"
    elif issubclass(field.kind, tuple):
        shown_as = f"list({value})"
    elif issubclass(field.kind, Mapping):
        shown_as = f"dict({value})"
    else:
        return value
    return f"None if {value} is None else {shown_as}" if field.optional else shown_as


def compiled(source: str, **names: Any) -> Any:
    """The value of the expression *source*, in which *names* are known."""
    return eval(compile(source, "<entity>", "eval"), names)


# --- Schema ---------------------------------------------------------------------------------------------------------


def schema_of(entity: type, **more: Schema) -> Schema:
    """The JSON Schema of what `json_of` shows, with the additional properties *more*."""
    properties = {field.key: _schema(field) for field in fields_of(entity) if field.about.shown} | more
    return {"type": "object", "properties": properties, "required": list(properties)}


def nullable(schema: Schema) -> Schema:
    """*schema*, or null."""
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", bytes: "string", Decimal: "string"}


def _schema(field: EntityField) -> Schema:
    if field.parts:
        properties = {part.key: _schema(part) for part in field.parts}
        schema: Schema = {"type": "object", "properties": properties, "required": list(properties)}
    elif field.kind is datetime:
        schema = {"type": "string", "format": "date-time"}
    elif issubclass(field.kind, StrEnum):
        schema = {"type": "string", "enum": [member.value for member in field.kind]}
    elif issubclass(field.kind, tuple):
        schema = {"type": "array", "items": {"type": _TYPES.get(field.item or str, "object")}}
    elif issubclass(field.kind, Mapping):
        schema = {"type": "object", "additionalProperties": True}
    else:
        schema = {"type": _TYPES[field.kind]}
    if field.about.text:
        schema["description"] = field.about.text
    schema |= field.about.schema
    return nullable(schema) if field.optional else schema
