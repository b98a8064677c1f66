"""
`python -m tests.bench all --json FILE` runs every benchmark of the README's table, each in a process of its own, and
writes one file; `python -m tests.bench table FILE` prints the table from it. `--only` names those to run (again): the
others stay as they are in FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.figures import table

NAMES = ("ingest", "deliver", "latency", "poll", "fanout", "stream", "archive")


def run_all(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench all", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    options = parser.parse_args(argv)
    measured: dict[str, Any] = {}
    if options.json.exists():
        measured = {each["bench"]: each for each in json.loads(options.json.read_text())["results"]}
    for name in options.only:
        print(f"running {name}", flush=True)
        command = [sys.executable, "-m", "tests.bench", name, "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured[name] = json.loads(done.stdout.splitlines()[-1])
        options.json.write_text(json.dumps({**_machine(), "results": list(measured.values())}, indent=1) + "\n")


def print_table(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench table", description=__doc__)
    parser.add_argument("file", type=Path)
    found = json.loads(parser.parse_args(argv).file.read_text())
    print("{cores} cores, Python {python}, {system}\n".format_map(found))
    print(table(found["results"]))


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
