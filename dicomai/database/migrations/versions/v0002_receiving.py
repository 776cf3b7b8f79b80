"""What other services say of a study: procedure steps, announcements, rejections, commitments."""

import sqlalchemy as sa
from alembic import op

from dicomai.database.tables import CleanText, Key, UTCDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables."""
    op.add_column("association", sa.Column("way_in", sa.String(16), nullable=False, server_default="receiver"))
    op.create_table(
        "procedure_step",
        sa.Column("id", Key, primary_key=True),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False, unique=True),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("doubt", CleanText(), nullable=False),
        sa.Column("study_instance_uid", sa.String(64), nullable=False, index=True),
        sa.Column("created_at", UTCDateTime(), nullable=False),
        sa.Column("changed_at", UTCDateTime(), nullable=False),
    )
    op.create_table(
        "announcement",
        sa.Column("id", Key, primary_key=True),
        sa.Column("study_instance_uid", sa.String(64), nullable=False, index=True),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("origin", sa.String(64), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uids", sa.JSON(), nullable=True),
        sa.Column("is_final", sa.Boolean(), nullable=False),
        sa.Column("announced_at", UTCDateTime(), nullable=False),
        sa.UniqueConstraint("series_instance_uid", "kind", "origin"),
    )
    op.create_table(
        "rejection",
        sa.Column("id", Key, primary_key=True),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("note_sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("code", sa.String(16), nullable=False),
        sa.Column("recorded_at", UTCDateTime(), nullable=False),
        sa.UniqueConstraint("sop_instance_uid", "note_sop_instance_uid"),
    )
    op.create_table(
        "commitment",
        sa.Column("id", Key, primary_key=True),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("calling_ae", sa.String(16), nullable=False),
        sa.Column("references", sa.JSON(), nullable=False),
        sa.Column("duplicate", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", CleanText(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("requested_at", UTCDateTime(), nullable=False),
        sa.Column("due_at", UTCDateTime(), nullable=False),
        sa.Index("ix_commitment_transaction", "calling_ae", "transaction_uid"),
        sa.Index("ix_commitment_due", "state", "due_at"),
    )
    op.add_column("instance", sa.Column("examined_at", UTCDateTime(), nullable=True))
    unexamined = sa.text("sop_class_uid = '1.2.840.10008.5.1.4.1.1.88.59' AND examined_at IS NULL")
    op.create_index("ix_instance_unexamined", "instance", ["id"], sqlite_where=unexamined, postgresql_where=unexamined)
