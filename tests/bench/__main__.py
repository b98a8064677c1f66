"""
`python -m tests.bench NAME [options]`: run `main(argv)` of the module NAME, which prints its figures.

`all` runs several of them into one file, `table` prints a table from it: see suite.py.
"""

import importlib
import sys

from tests.bench import suite

NAMES = (*suite.NAMES, "floods", "hosts", "many_jobs", "pages", "slots", "soak", "upload")

if __name__ == "__main__":
    NAME, ARGV = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if NAME == "all":
        suite.run_all(ARGV)
    elif NAME == "table":
        suite.print_table(ARGV)
    elif NAME in NAMES:
        importlib.import_module(f"tests.bench.{NAME}").main(ARGV)
    else:
        sys.exit(f"usage: python -m tests.bench {'|'.join(('all', 'table', *NAMES))}")
