"""Alembic migrations, run by `receiver migrate` and, on SQLite, by every start."""
