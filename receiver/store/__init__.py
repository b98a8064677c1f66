"""All that is durable: the database, its statements by entity, and files. The only room that knows SQL."""
