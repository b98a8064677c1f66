"""`python -m tests.bench NAME [options]`: run `main(argv)` of the module NAME, which prints its figures."""

import importlib
import sys

NAMES = ("archive", "ingest", "deliver", "poll", "floods", "pages", "soak", "upload")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m tests.bench {'|'.join(NAMES)}")
    importlib.import_module(f"tests.bench.{sys.argv[1]}").main(sys.argv[2:])
