"""What became of what a destination accepted: how it is filed, how long it was not shown, whether it is committed."""

import sqlalchemy as sa
from alembic import op

from dicomai.database.tables import CleanText, Key, UTCDateTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("workitem", sa.Column("looked_at", UTCDateTime(), nullable=True))
    op.add_column("workitem", sa.Column("unseen", sa.Double(), nullable=False, server_default="0"))
    op.add_column("acceptance", sa.Column("found", CleanText(), nullable=True))
    op.create_table(
        "asked_commitment",
        sa.Column("id", Key, primary_key=True),
        sa.Column("workitem_id", Key, sa.ForeignKey("workitem.id"), nullable=False, index=True),
        sa.Column("transaction_uid", sa.String(64), nullable=False, unique=True),
        sa.Column("ae_title", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("failures", sa.JSON(), nullable=False),
        sa.Column("asked_at", UTCDateTime(), nullable=False),
    )
