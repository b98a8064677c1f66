"""`python -m tests.bench ingest|deliver|poll [options]`: run `main(argv)` of that module, which prints its figures."""

import importlib
import sys

NAMES = ("ingest", "deliver", "poll")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m tests.bench {'|'.join(NAMES)}")
    importlib.import_module(f"tests.bench.{sys.argv[1]}").main(sys.argv[2:])
