"""
The SDK for a running receiver: `Client`, `AsyncClient`, and the values that they return.

`steps` defines the steps of calls, `link` makes requests and retries them, `jobs`, `events` and `administration` are
the calls, none of which does I/O; `sync_client` and `async_client` carry them out.
"""
