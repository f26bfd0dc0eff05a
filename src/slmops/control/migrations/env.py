"""Alembic's entry: runs the versions on the connection that the store hands over."""

from alembic import context


def run_migrations() -> None:
    """Run what is missing, in the transaction of the store's connection."""
    context.configure(connection=context.config.attributes["connection"])
    with context.begin_transaction():
        context.run_migrations()


# Alembic runs this file with its context set up; anyone else only imports it.
if hasattr(context, "config"):
    run_migrations()
