"""
Handlers for webhooks in web frameworks, one module each: `fastapi` (Starlette too), `flask`, `django`.

Each verifies the delivery before the handler runs and answers one that does not hold with 401. Deliveries come at least
once: skip an event whose `id` was handled before.
"""
