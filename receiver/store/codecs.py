"""
Rows of entities: columns and codecs, derived from the dataclass that describes the entity.

Each codec is source code made from the fields and compiled once, when it is imported. Settling reads and writes rows by
the thousand: a loop over the fields of a row would cost five times as much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Generic, TypeVar, cast

from receiver.domain.entity import EntityField, fields_of

E = TypeVar("E")
Row = Sequence[Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(moment: datetime | None) -> int | None:
    """Convert a time to its stored form: microseconds since 1970."""
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def us(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def from_us(value: int | None) -> datetime | None:
    return None if value is None else _EPOCH + timedelta(microseconds=value)


def moment(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


_loads = json.JSONDecoder().decode
_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Codec(Generic[E]):
    """
    The codec for rows of *entity*, without the columns that belong to the store alone (such as leases).

    `columns` are their names, `from_row` takes their values in that order. `to_row` gives the values of `written`: all
    of them but *numbered*, a column that the database increments. `changes` gives the columns in which the second of
    two entities differs from the first, with their new values, always in the same order.
    """

    def __init__(self, entity: type[E], *, numbered: str | None = None) -> None:
        self.columns = tuple(leaf.column for field in fields_of(cast(Any, entity)) for leaf in leaves(field))
        self.written = tuple(column for column in self.columns if column != numbered)
        self.sql = ", ".join(self.columns)
        self.from_row: Callable[[Row], E] = _reader(entity)
        self.to_row: Callable[[E], tuple[Any, ...]] = _writer(entity, numbered)
        self.changes: Callable[[E, E], dict[str, Any]] = _differ(entity)

    def place(self, column: str) -> int:
        """The place of *column* in a row."""
        return self.columns.index(column)


def leaves(field: EntityField) -> tuple[EntityField, ...]:
    """Return the fields that have a column of their own."""
    return field.parts or (field,)


# --- Source code ----------------------------------------------------------------------------------------------------


class _Names:
    """The values that the source code refers to by name."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {
            "epoch": _EPOCH,
            "delta": timedelta,
            "microsecond": _MICROSECOND,
            "loads": _loads,
            "dumps": _dumps,
            "Decimal": Decimal,
        }

    def of(self, value: Any, name: str) -> str:
        self.known[name] = value
        return name


def _reader(entity: type) -> Callable[[Row], Any]:
    names = _Names()
    variables: list[str] = []
    arguments: list[str] = []
    for field in fields_of(entity):
        values = [f"v{len(variables) + n}" for n in range(len(leaves(field)))]
        variables += values
        if field.parts:
            inner = ", ".join(_read(part, value, names) for part, value in zip(field.parts, values, strict=True))
            made = f"{names.of(field.kind, f'make_{field.name}')}({inner})"
            arguments.append(f"None if {values[0]} is None else {made}" if field.optional else made)
        else:
            arguments.append(_read(field, values[0], names))
    make = names.of(entity, "make")
    body = f"def from_row(row):\n ({', '.join(variables)},) = row\n return {make}({', '.join(arguments)})"
    return cast(Callable[[Row], Any], _function("from_row", body, names))


def _writer(entity: type, without: str | None) -> Callable[[Any], tuple[Any, ...]]:
    names = _Names()
    fields = [field for field in fields_of(entity) if field.column != without]
    values = [value for field in fields for value in _written(field, f"e.{field.name}", names)]
    source = f"def to_row(e):\n return ({', '.join(values)},)"
    return cast(Callable[[Any], tuple[Any, ...]], _function("to_row", source, names))


def _differ(entity: type) -> Callable[[Any, Any], dict[str, Any]]:
    names = _Names()
    lines = ["def changes(a, b):", " d = {}"]
    for field in fields_of(entity):
        lines.append(f" x = b.{field.name}")
        lines.append(f" if x is not a.{field.name} and x != a.{field.name}:")
        for leaf, value in zip(leaves(field), _written(field, "x", names), strict=True):
            lines.append(f"  d[{leaf.column!r}] = {value}")
    return cast(Callable[[Any, Any], dict[str, Any]], _function("changes", "\n".join([*lines, " return d"]), names))


def _function(name: str, source: str, names: _Names) -> Any:
    space = dict(names.known)
    exec(compile(source, f"<codec {name}>", "exec"), space)
    return space[name]


def _written(field: EntityField, value: str, names: _Names) -> list[str]:
    """Return the expressions for the columns of *field*, whose value is the expression *value*."""
    if not field.parts:
        return [_write(field, value, names)]
    written = [_write(part, f"{value}.{part.name}", names) for part in field.parts]
    return [f"None if {value} is None else {part}" for part in written] if field.optional else written


def _read(field: EntityField, value: str, names: _Names) -> str:
    if field.kind in (str, int, float):
        return value
    if issubclass(field.kind, StrEnum):
        members = names.of({member.value: member for member in field.kind}, f"members_{field.column}")
        read = f"{members}[{value}]"
    elif field.kind is bool:
        read = f"{value} == 1"
    elif field.kind is datetime:
        read = f"epoch + delta(0, 0, {value})"
    elif field.kind is bytes:
        read = f"bytes({value})"
    elif field.kind is Decimal:
        read = f"Decimal({value})"
    elif issubclass(field.kind, tuple):
        read = _read_tuple(field, value, names)
    else:
        read = f"loads({value}) if {value} != '{{}}' else {{}}"
    return f"None if {value} is None else {read}" if field.optional else read


def _write(field: EntityField, value: str, names: _Names) -> str:
    if field.kind in (str, int, float, bytes):
        return value
    if issubclass(field.kind, StrEnum):
        written = f"{value}.value"
    elif field.kind is bool:
        written = f"1 if {value} else 0"
    elif field.kind is datetime:
        written = f"({value} - epoch) // microsecond"
    elif field.kind is Decimal:
        written = f"format({value}, 'f')"
    elif issubclass(field.kind, tuple):
        written = _write_tuple(field, value, names)
    else:
        written = f"dumps({value}) if {value} else '{{}}'"
    return f"None if {value} is None else {written}" if field.optional else written


def _read_tuple(field: EntityField, value: str, names: _Names) -> str:
    if field.item is str:
        return f"tuple(loads({value}))"
    assert field.item is not None
    make = names.of(field.item, f"make_{field.column}")
    parts = ", ".join(_read(part, f"o[{part.column!r}]", names) for part in fields_of(field.item))
    return f"tuple([{make}({parts}) for o in loads({value})])"


def _write_tuple(field: EntityField, value: str, names: _Names) -> str:
    if field.item is str:
        return f"dumps({value})"
    assert field.item is not None
    parts = ", ".join(f"{part.column!r}: {_write(part, f'o.{part.name}', names)}" for part in fields_of(field.item))
    return f"dumps([{{{parts}}} for o in {value}])"
