"""Columns of the overview's charts, and what of them is read once only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from receiver.domain.rollups import Sums
from receiver.store.rollups import RollupTable
from receiver.web.page.hourly_sums import HourlySums
from tests.support.running_receiver import running_receiver


async def test_closed_hours_are_read_once_and_open_ones_again(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        table = RollupTable(here.receiver.parts.database)
        now = datetime(2026, 3, 10, 14, 30, tzinfo=UTC)
        for back in range(30):
            hour = now.replace(minute=0) - timedelta(hours=back)
            await table.write(hour, {"": Sums(), "novita": Sums(created=1)})
        sums = HourlySums(table)

        async def created(step: int) -> list[int]:
            columns = await sums.columns(timedelta(hours=24), step, now)
            assert all(at.hour % step == 0 for at, _ in columns)
            return [by_provider.get("novita", Sums()).created for _, by_provider in columns]

        assert await created(1) == [1] * 24
        assert await created(6) == [6, 6, 6, 6, 3]
        for back in range(30):
            await table.write(now.replace(minute=0) - timedelta(hours=back), {"novita": Sums(created=5)})
        assert await created(1) == [1] * 21 + [5] * 3
        assert await created(6) == [6, 6, 6, 6, 15]


async def test_it_is_known_until_when_hours_are_summed(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        table = RollupTable(here.receiver.parts.database)
        sums = HourlySums(table)
        now = datetime(2126, 3, 10, 14, 3, tzinfo=UTC)
        hour = now.replace(minute=0)
        for summed, until in (
            (hour - timedelta(hours=5), hour - timedelta(hours=4)),
            (hour - timedelta(hours=1), None),
        ):
            await table.write(summed, {"": Sums()})
            assert await sums.summed_until(now) == until
        assert await sums.summed_until(now + timedelta(hours=1)) == hour


async def test_nothing_is_remembered_before_all_hours_are_summed(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        table = RollupTable(here.receiver.parts.database)
        now = datetime(2026, 3, 10, 14, 30, tzinfo=UTC)
        sums = HourlySums(table)
        assert len(await sums.columns(timedelta(hours=24), 1, now)) == 24
        old = now.replace(minute=0) - timedelta(hours=20)
        await table.write(old, {"novita": Sums(created=7)})
        columns = dict(await sums.columns(timedelta(hours=24), 1, now))
        assert columns[old]["novita"].created == 7
