"""`python -m submitter.sandbox`: the stand-ins on their own port, with the settings that point a client at them."""

from __future__ import annotations

import argparse
import sys

import uvicorn

from submitter.sandbox.app import Sandbox
from submitter.sandbox.serving import config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m submitter.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    sandbox = Sandbox(seed=asked.seed)
    for name, value in sandbox.environment(f"http://{asked.host}:{asked.port}").items():
        sys.stdout.write(f"{name}={value}\n")
    sys.stdout.flush()
    uvicorn.Server(config(sandbox.app, host=asked.host, port=asked.port)).run()


if __name__ == "__main__":
    main()
