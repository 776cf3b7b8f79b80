"""What destinations were seen to accept."""

import sqlalchemy as sa
from alembic import op

from dicomai.database.tables import CleanText, UTCDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "destination_probe",
        sa.Column("destination", sa.String(64), primary_key=True),
        sa.Column("tried_at", UTCDateTime(), nullable=False),
        sa.Column("error", CleanText(), nullable=False),
        sa.Column("answered_at", UTCDateTime(), nullable=True),
        sa.Column("accepted", sa.JSON(), nullable=False),
    )
