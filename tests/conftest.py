"""Settings of the test run."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import pytest

from tests.support import engines, forking

_MEMORY = "/dev/shm"
_ROOM = 4 << 30
_APART = 7

if "TMPDIR" not in os.environ and os.path.isdir(_MEMORY) and shutil.disk_usage(_MEMORY).free > _ROOM:
    # Thousands of small databases that are synced to a disk are a third of what the suite waits for.
    os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job; programs that the tests start and interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all tests are collected: most of what is made until then lives to the end


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """
    Run the suite in two processes more than there are cores, since tests wait more than they compute.

    A single file or named tests run in this process, where a debugger and `-s` work.
    """
    named = [argument for argument in config.args if "::" in argument or argument.endswith(".py")]
    if named == config.args and len({argument.partition("::")[0] for argument in named}) == 1:
        return 0
    return min((os.cpu_count() or 1) + 2, 8)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("tx", None):  # this process starts those that run the tests
        forking.share_parent()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a long value by its argument: a file as an id is unreadable, and a compressed one differs by process."""
    return argname if isinstance(val, bytes | str) and len(val) > 100 else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Spread slow tests. On PostgreSQL, leave out what is about SQLite, and what has no database."""
    items[:] = _spread(
        [item for item in items if item.get_closest_marker("slow") is not None],
        [item for item in items if item.get_closest_marker("slow") is None],
    )
    if not engines.ON_POSTGRESQL:
        return
    kept = [item for item in items if item.get_closest_marker("sqlite") is None and _has_database(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    engines.end_server()


@pytest.fixture(autouse=True)
def _databases_of_the_test() -> Iterator[None]:
    before = engines.known_databases()
    yield
    engines.drop_databases(but=before)


def _spread(slow: list[pytest.Item], others: list[pytest.Item]) -> list[pytest.Item]:
    """
    Put *slow* ones among *others*; the last quarter has none.

    Those of a file are far apart: some files compute for long and some wait for long, and both at a time is better.
    """
    between = len(others) * 3 // 4 // max(len(slow), 1)
    spread: list[pytest.Item] = []
    for n, item in enumerate(item for first in range(_APART) for item in slow[first::_APART]):
        spread += [item, *others[n * between : (n + 1) * between]]
    return spread + others[len(slow) * between :]


def _has_database(item: pytest.Item) -> bool:
    """Return whether the module of *item*, or a fixture that it requests, may request a database."""
    assert isinstance(item, pytest.Function)
    return "postgresql_server" in item.fixturenames or engines.__name__ in _reached(item.module.__name__)


@cache
def _reached(name: str) -> frozenset[str]:
    """The test modules that the module *name* imports from, and those that they do."""
    direct = {
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        for value in vars(sys.modules[name]).values()
    }
    ours = {other for other in direct if isinstance(other, str) and other.startswith("tests.") and other != name}
    return frozenset(ours).union(*(_reached(other) for other in ours))
