"""A provider's options as fields of a form: made from their JSON Schema, and their texts converted to values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from receiver.web.problems import Problem

Kind = Literal["choice", "number", "text", "json"]
_TRUE_FALSE = (True, False)


@dataclass(frozen=True, slots=True)
class OptionField:
    """
    An option. If its field is empty, it is not sent, or takes its default.

    `choices` are pairs of the value that a form sends and the text that it shows; `step` is 1 for whole numbers and
    `any` for others.
    """

    name: str
    kind: Kind
    description: str
    default: str
    choices: Sequence[tuple[str, str]] = ()
    minimum: float | None = None
    maximum: float | None = None
    step: str = "any"

    def value(self, text: str) -> Any:
        """Convert *text* to a value; raises `Problem` if it is not of the option's kind."""
        if self.kind == "text":
            return text
        try:
            return json.loads(text, parse_constant=_refused)
        except (ValueError, RecursionError) as exc:
            what = "a number" if self.kind == "number" else "JSON"
            raise Problem(
                422,
                "invalid_option",
                f"options.{self.name} is not {what}",
                field=f"options.{self.name}",
                remedy=self.description.rstrip(".") or f"write it as {what}",
            ) from exc


def option_fields(schema: Mapping[str, Any]) -> list[OptionField]:
    """Return the fields of *schema*, `passthrough` last."""
    properties: Mapping[str, Mapping[str, Any]] = schema["properties"]
    names = sorted(properties, key=lambda name: name == "passthrough")
    return [_field(name, properties[name]) for name in names]


def _field(name: str, described: Mapping[str, Any]) -> OptionField:
    shapes = [shape for shape in described.get("anyOf", [described]) if shape.get("type") != "null"]
    default = described.get("default")
    common = {
        "name": name,
        "description": described.get("description", ""),
        "default": "" if default is None or isinstance(default, dict) else _shown(default),
    }
    values = [value for shape in shapes for value in shape.get("enum", [shape["const"]] if "const" in shape else [])]
    kinds = {shape.get("type") for shape in shapes}
    if kinds == {"boolean"}:
        values = list(_TRUE_FALSE)
    if values:
        return OptionField(kind="choice", choices=[(json.dumps(value), _shown(value)) for value in values], **common)
    if kinds <= {"integer", "number"}:
        lows = [shape.get("minimum", shape.get("exclusiveMinimum")) for shape in shapes]
        highs = [shape.get("maximum", shape.get("exclusiveMaximum")) for shape in shapes]
        return OptionField(
            kind="number",
            minimum=next((low for low in lows if low is not None), None),
            maximum=next((high for high in highs if high is not None), None),
            step="1" if kinds == {"integer"} else "any",
            **common,
        )
    return OptionField(kind="text" if kinds == {"string"} else "json", **common)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _refused(name: str) -> Any:
    raise ValueError(name)
