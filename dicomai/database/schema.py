"""The schema's versions. Imported when it is asked about, so that a role that only works starts without alembic."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from dicomai.errors import StoreError


def upgrade(connection: sa.Connection) -> None:
    """Bring the schema to this version, in the caller's transaction.

    Raises:
        StoreError: the database was written by a newer dicomai.
    """
    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if current is not None and current not in known:
        raise StoreError(
            f"The worklist database is at schema '{current}', which a newer dicomai wrote; run that version."
        )
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def is_current(connection: sa.Connection) -> bool:
    """Tell whether the schema is this version's."""
    current = MigrationContext.configure(connection).get_current_revision()
    return current == ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
