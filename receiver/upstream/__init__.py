"""Towards providers: sending, polling, reading what came, keeping images."""
