"""Habits of the tests that a reader can't be asked to check line by line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PRIVATE_OF_LIBRARIES = {"_replace", "_labelnames", "_exit", "_shutdown", "_run_exitfuncs"}
"""Documented all the same, or without a public alternative."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in TESTS.rglob("*.py"):
        place = path.relative_to(TESTS).as_posix()
        if not place.startswith("bench/"):
            yield place, ast.parse(path.read_text())


def test_nothing_private_is_reached_into() -> None:
    """An attribute or a name that starts with an underscore is its own module's business."""
    found = []
    for place, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node):
                found.append((place, node.lineno, node.attr))
            if isinstance(node, ast.ImportFrom):
                found += [(place, node.lineno, alias.name) for alias in node.names if is_private(alias.name)]
    assert found == []


def test_no_wait_is_bounded_by_a_number_of_its_own() -> None:
    """A short bound is an assertion on the machine's speed; `tests/support/waiting.py` has the one that fits all."""
    found = []
    for place, module in modules():
        if place == "support/waiting.py":
            continue
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("asyncio.timeout", "asyncio.wait_for"):
                found.append((place, node.lineno))
    assert found == []


def test_a_test_module_is_named_after_what_it_tests() -> None:
    """In the folder of a room there are no names but `test_….py`, `conftest.py` and `__init__.py`."""
    strays = [
        path.relative_to(TESTS).as_posix()
        for path in (TESTS / "receiver").rglob("*.py")
        if not path.name.startswith("test_") and path.name not in ("__init__.py", "conftest.py")
    ]
    assert strays == []


def is_own(node: ast.Attribute) -> bool:
    """Return whether it is an attribute of the object itself, or of a library without a public alternative."""
    return node.attr in PRIVATE_OF_LIBRARIES or (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
