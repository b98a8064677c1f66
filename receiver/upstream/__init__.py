"""Towards providers: sending, polling, reading evidence, keeping images."""
