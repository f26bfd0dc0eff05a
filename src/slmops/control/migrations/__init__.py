"""Alembic migrations of the control plane's database, packaged with it."""
