"""The earlier studies of a patient without a look at every image."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the index."""
    known = sa.text("patient_id <> '' AND length(patient_id) <= 64")
    op.create_index("ix_version_patient", "version", ["patient_id"], sqlite_where=known, postgresql_where=known)
