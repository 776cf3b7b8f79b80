"""What has gone on from here, what has still to, and the key of pseudonyms."""

import sqlalchemy as sa
from alembic import op

from dicomai.database.tables import CleanText, Key, UTCDateTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the table, the columns and their index."""
    op.add_column("installation", sa.Column("secret", sa.String(64), nullable=False, server_default=""))
    op.add_column("series", sa.Column("forward_at", UTCDateTime(), nullable=True))
    op.create_index("ix_series_forward", "series", ["forward_at"])
    op.add_column("workitem", sa.Column("released", CleanText(), nullable=False, server_default=""))
    whole = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"  # as `Key`; with its reference at once
    op.execute(f"ALTER TABLE result_object ADD COLUMN version_id {whole} REFERENCES version (id)")
    op.create_table(
        "forwarded",
        sa.Column("version_id", Key, sa.ForeignKey("version.id"), primary_key=True),
        sa.Column("rule", sa.String(64), primary_key=True),
        sa.Column("workitem_id", Key, sa.ForeignKey("workitem.id"), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
    )
    op.create_index("ix_forwarded_workitem_id", "forwarded", ["workitem_id"])
