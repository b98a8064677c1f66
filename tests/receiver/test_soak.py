"""A short soak: what is opened is closed again. Its long form, with memory, is `python -m tests.bench soak`."""

from __future__ import annotations

import pytest

from tests.bench.soak import soak, verdict


@pytest.mark.slow
async def test_descriptors_and_threads_do_not_grow_under_steady_work() -> None:
    samples, done = await soak(25, every_seconds=0.5, senders=1)
    assert done["jobs"] > 5
    assert done["callbacks answered 200"] > 50
    assert done["deliveries answered 200"] > 5
    assert done["deliveries answered 500"] > 5
    assert done["events on streams"] > 5
    assert not [line for line in verdict(samples) if not line.startswith("RSS")]
