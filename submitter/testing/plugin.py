"""The pytest fixtures, found through an entry point."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from submitter.sandbox import Faults
from submitter.testing.sandboxed import SandboxedReceiver


@pytest.fixture(scope="session")
def _receiver_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxedReceiver]:
    with SandboxedReceiver(tmp_path_factory.mktemp("receiver")) as receiver:
        yield receiver


@pytest.fixture
def receiver(_receiver_of_the_session: SandboxedReceiver) -> Iterator[SandboxedReceiver]:
    """A running receiver with sandboxed providers. All tests share it; its faults are reset after each."""
    yield _receiver_of_the_session
    _receiver_of_the_session.faults = Faults()
