"""The engines below the storage interface: SQLite and PostgreSQL. Only `receiver.store.database` imports them."""
