"""HTTP in: callbacks, the API, health."""
