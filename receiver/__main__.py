"""`python -m receiver`, and the program `receiver`."""

from __future__ import annotations

from submitter.interrupts import end_quietly


def main() -> None:
    """Entry point."""
    end_quietly("receiver")
    from receiver.cli import main as run

    run()


if __name__ == "__main__":
    main()
