"""The dashboard: pages over the API, for people."""
