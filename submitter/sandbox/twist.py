"""`Twist`: the differences of a triggered callback from a true one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TWIST_FAULTS: Mapping[str, str] = {
    "lose": "it is never sent",
    "duplicate": "it is sent twice, the second time with an id and signature of its own",
    "replay": "it is sent twice, byte for byte",
    "forge": "it is signed with another secret, where the provider signs",
}


@dataclass(frozen=True, slots=True)
class Twist:
    """
    Changes to a callback. *overrides* are values by dotted path, set in the body before it is signed: `{"data.status":
    "ODD"}`. A number in a path is an index of an existing list; values along a path that are not objects are replaced
    by objects. *faults* are names of `TWIST_FAULTS`.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    faults: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := sorted(self.faults - TWIST_FAULTS.keys()):
            raise ValueError(f"there is no fault {unknown[0]!r} of a callback; use one of {', '.join(TWIST_FAULTS)}")
        if any(not all(path.split(".")) for path in self.overrides):
            raise ValueError("a path of an override is names with dots between them")

    @classmethod
    def from_json(cls, overrides: Any, faults: Any) -> Twist:
        """Read the values of a request; None for nothing. Raises ValueError."""
        overrides, faults = overrides or {}, faults or []
        if not isinstance(overrides, dict):
            raise ValueError("overrides must be an object: values by path")
        if not isinstance(faults, list) or not all(isinstance(fault, str) for fault in faults):
            raise ValueError("faults must be a list of names")
        return cls(overrides, frozenset(faults))

    def applied(self, body: bytes) -> bytes:
        """Return *body* with all overrides."""
        if not self.overrides:
            return body
        value = json.loads(body)
        for path, replacement in self.overrides.items():
            value = _with(value, path.split("."), replacement)
        return json.dumps(value, separators=(",", ":")).encode()


TRUE = Twist()


def _with(value: Any, path: list[str], replacement: Any) -> Any:
    if not path:
        return replacement
    name, *rest = path
    if isinstance(value, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(value):
        place = int(name[:9])
        return [_with(item, rest, replacement) if n == place else item for n, item in enumerate(value)]
    fields = value if isinstance(value, dict) else {}
    return {**fields, name: _with(fields.get(name), rest, replacement)}
