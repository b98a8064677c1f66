"""Outbound HTTP to addresses that others chose, behind one guard. Imports nothing of ours."""
