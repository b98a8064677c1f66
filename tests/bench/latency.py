"""
From callback in to notification out: `python -m tests.bench latency [--rounds 5] [--rates 200 500] [--seconds 4]`.

Signed callbacks are offered to a real receiver at a steady rate, whether or not earlier ones are answered; counted is
the time from the moment at which a callback was due to be sent to the moment at which its event was at the subscriber.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bench.figures import Figure, parser, present
from tests.bench.ingest import Bench
from tests.bench.subscriber import subscriber, wait_for


def main(argv: list[str]) -> None:
    options = parser("latency", __doc__)
    options.add_argument("--rates", type=int, nargs="+", default=[200, 500], help="callbacks per second")
    options.add_argument("--seconds", type=float, default=4.0, help="how long they come in a round, at each rate")
    options.add_argument("--rows", type=int, default=20_000, help="evidence rows that are there before")
    options.add_argument("--processes", type=int, default=1, help="processes of ours: all but the last answer")
    given = options.parse_args(argv)
    figures = {
        (rate, part): Figure(f"callback in to notification out at {rate}/s, p{part}", "ms")
        for rate in given.rates
        for part in (50, 99)
    }
    with tempfile.TemporaryDirectory() as directory, subscriber() as origin:
        bench = Bench(Path(directory), given.rows, processes=given.processes)
        bench.prepare()
        with bench.serving("nothing", "ours"):
            bench.subscribe(f"{origin}/hook")
            taken(bench, origin, 200, 1)
            for _ in range(given.rounds):
                for rate in given.rates:
                    ordered = sorted(taken(bench, origin, rate, given.seconds))
                    for part in (50, 99):
                        figures[rate, part].values.append(1000 * ordered[len(ordered) * part // 100])
    conditions = f"{given.seconds:g} s a round, one subscriber with 64 slots, {given.processes} of our processes"
    present("latency", conditions, list(figures.values()), as_json=given.json)


def taken(bench: Bench, origin: str, rate: int, seconds: float) -> list[float]:
    count = int(rate * seconds)
    jobs = bench.running_jobs(count)
    began = bench.load("ours", count, rate=rate, jobs=jobs)["began"]
    came = wait_for(origin, count)
    bench.wait_drained()
    return [came[job] - (began + n / rate) for n, (job, _) in enumerate(jobs)]
