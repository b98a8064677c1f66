"""Shared helpers of the tests: real processes, servers and pictures."""
