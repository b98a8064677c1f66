"""Measurements: `python -m tests.bench NAME`. Loopback only, bounded in count and time."""
