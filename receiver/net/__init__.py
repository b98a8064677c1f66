"""Outbound HTTP to addresses that others chose, behind one guard. Imports none of our modules."""
