"""The ways by which a callback is answered."""

from __future__ import annotations

import pytest

from tests.support.running_receiver import WAY


@pytest.fixture(params=["application", "server"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks the application; or a server, which answers ordinary callbacks by itself."""
    monkeypatch.setenv(WAY, request.param)
