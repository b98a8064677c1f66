from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.dashboard import Setup, dashboard


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Setup]:
    async with dashboard(tmp_path) as setup:
        yield setup
