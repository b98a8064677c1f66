"""`python -m submitter`, and the program `submitter`."""

from __future__ import annotations

from submitter.interrupts import end_quietly


def main() -> None:
    """Entry point."""
    end_quietly("submitter")
    from submitter.cli import main as run

    run()


if __name__ == "__main__":
    main()
