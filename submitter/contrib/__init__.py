"""
Handlers for webhooks in web frameworks, one module each: `fastapi` (Starlette too), `flask`, `django`.

Each verifies the delivery before the handler runs, and answers 401 if that fails. Deliveries arrive at least once: skip
an event whose `id` was handled before.
"""
