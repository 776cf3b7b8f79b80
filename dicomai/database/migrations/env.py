"""Runs migrations on the connection that `Database.migrate` hands over; its transaction is the caller's."""

from alembic import context

from dicomai.database.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()
