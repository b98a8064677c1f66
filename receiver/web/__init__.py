"""Inbound HTTP: callbacks, the API, health."""
