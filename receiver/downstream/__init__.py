"""Towards subscribers: deliveries and the event stream."""
