"""
The form of what benchmarks print: one value for each round, their median, their spread, and the baseline named.

A benchmark measures all its figures in turn, round by round, so that a ratio is of two that were measured side by side.
`present` prints them as a table, or with `--json` as what `python -m tests.bench all` puts into its file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Figure:
    """A measured quantity, in *unit*, round by round. *baseline* is the `what` of the figure to compare it with."""

    what: str
    unit: str
    values: list[float] = field(default_factory=list)
    baseline: str | None = None


def parser(name: str, doc: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    made = argparse.ArgumentParser(prog=f"python -m tests.bench {name}", description=doc)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--json", action="store_true", help="print the figures as JSON")
    return made


def present(name: str, conditions: str, figures: Sequence[Figure], *, as_json: bool) -> None:
    """Print *figures*; *conditions* says under which they were measured."""
    result = {"bench": name, "conditions": conditions, "figures": [asdict(each) for each in figures]}
    print(json.dumps(result) if as_json else table([result]))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown of what `present` gives as JSON: the median, the spread, and the ratio to the baseline's median."""
    lines = ["| | median | spread | of the baseline |", "|---|---|---|---|"]
    for result in results:
        figures = [Figure(**each) for each in result["figures"]]
        medians = {each.what: statistics.median(each.values) for each in figures}
        lines.append(f"| **{result['bench']}**: {result['conditions']} | | | |")
        for each in figures:
            spread = f"{_shown(min(each.values))} to {_shown(max(each.values))}"
            ratio = ""
            if each.baseline is not None:
                ratio = f"{medians[each.what] / medians[each.baseline]:.3f} of {each.baseline}"
            lines.append(f"| {each.what} | {_shown(medians[each.what])} {each.unit} | {spread} | {ratio} |")
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
