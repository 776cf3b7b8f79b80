"""The first schema: index of studies, worklist, results, audit."""

import sqlalchemy as sa
from alembic import op

from dicomai.database.tables import Key, UTCDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table, those first that others refer to."""
    _arrivals()
    _instances()
    _results()
    _worklist()
    _done()


def _arrivals() -> None:
    """Make the tables of what comes, and by whom."""
    op.create_table(
        "association",
        sa.Column("id", Key, nullable=False),
        sa.Column("calling_ae", sa.String(length=16), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("opened_at", UTCDateTime(), nullable=False),
        sa.Column("last_activity", UTCDateTime(), nullable=False),
        sa.Column("lease_expires", UTCDateTime(), nullable=False),
        sa.Column("ended_at", UTCDateTime(), nullable=True),
        sa.Column("end", sa.String(length=16), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "study",
        sa.Column("id", Key, nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("trace", sa.String(length=16), nullable=False),
        sa.Column("created_at", UTCDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_instance_uid"),
    )
    op.create_table(
        "series",
        sa.Column("id", Key, nullable=False),
        sa.Column("study_id", Key, nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.String(length=16), nullable=False),
        sa.Column("description", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("conflict", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("last_received_at", UTCDateTime(), nullable=False),
        sa.Column("due_at", UTCDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["study.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_id", "series_instance_uid"),
    )
    op.create_index("ix_series_due", "series", ["state", "due_at"], unique=False)
    op.create_index("ix_series_uid", "series", ["series_instance_uid"], unique=False)
    op.create_table(
        "association_series",
        sa.Column("association_id", Key, nullable=False),
        sa.Column("series_id", Key, nullable=False),
        sa.ForeignKeyConstraint(
            ["association_id"],
            ["association.id"],
        ),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["series.id"],
        ),
        sa.PrimaryKeyConstraint("association_id", "series_id"),
    )
    op.create_index("ix_association_series_series_id", "association_series", ["series_id"], unique=False)


def _instances() -> None:
    """Make the tables of each instance, and its versions."""
    op.create_table(
        "instance",
        sa.Column("id", Key, nullable=False),
        sa.Column("series_id", Key, nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("is_image", sa.Boolean(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("conflict", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["series.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sop_instance_uid"),
    )
    op.create_index("ix_instance_series_id", "instance", ["series_id"], unique=False)
    op.create_table(
        "version",
        sa.Column("id", Key, nullable=False),
        sa.Column("instance_id", Key, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("conflicting", sa.Boolean(), nullable=False),
        sa.Column("received_at", UTCDateTime(), nullable=False),
        sa.Column("association_id", Key, nullable=True),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("issuer_of_patient_id", sa.Text(), nullable=False),
        sa.Column("patient_name", sa.Text(), nullable=False),
        sa.Column("patient_birth_date", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["association_id"],
            ["association.id"],
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("instance_id", "digest"),
        sa.UniqueConstraint("key"),
    )


def _results() -> None:
    """Make the tables of what was made, and by which installation."""
    op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "result",
        sa.Column("id", Key, nullable=False),
        sa.Column("created_at", UTCDateTime(), nullable=False),
        sa.Column("first_sent_at", UTCDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "result_object",
        sa.Column("id", Key, nullable=False),
        sa.Column("result_id", Key, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("output", sa.String(length=32), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_number", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_id"],
            ["result.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("result_id", "n"),
    )
    op.create_index("ix_result_object_series_instance_uid", "result_object", ["series_instance_uid"], unique=False)
    op.create_index("ix_result_object_sop_instance_uid", "result_object", ["sop_instance_uid"], unique=False)


def _worklist() -> None:
    """Make the tables of the items of work."""
    op.create_table(
        "workitem",
        sa.Column("id", Key, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("hold", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("study_id", Key, nullable=False),
        sa.Column("route", sa.JSON(), nullable=False),
        sa.Column("route_name", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("replaced_by", Key, nullable=True),
        sa.Column("supersedes", Key, nullable=True),
        sa.Column("result_id", Key, nullable=True),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_expires", UTCDateTime(), nullable=True),
        sa.Column("due_at", UTCDateTime(), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("created_at", UTCDateTime(), nullable=False),
        sa.Column("changed_at", UTCDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["replaced_by"],
            ["workitem.id"],
        ),
        sa.ForeignKeyConstraint(
            ["result_id"],
            ["result.id"],
        ),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["study.id"],
        ),
        sa.ForeignKeyConstraint(
            ["supersedes"],
            ["workitem.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_workitem_claim", "workitem", ["kind", "state", "due_at"], unique=False)
    op.create_index("ix_workitem_study_id", "workitem", ["study_id"], unique=False)
    op.create_index(
        "ux_workitem_delivery",
        "workitem",
        ["result_id", "destination"],
        unique=True,
        sqlite_where=sa.text("kind = 'delivery' AND replaced_by IS NULL"),
        postgresql_where=sa.text("kind = 'delivery' AND replaced_by IS NULL"),
    )
    op.create_index(
        "ux_workitem_digest",
        "workitem",
        ["digest"],
        unique=True,
        sqlite_where=sa.text("kind = 'inference' AND replaced_by IS NULL"),
        postgresql_where=sa.text("kind = 'inference' AND replaced_by IS NULL"),
    )


def _done() -> None:
    """Make the tables of what items work on, and what came of them."""
    op.create_table(
        "workitem_input",
        sa.Column("id", Key, nullable=False),
        sa.Column("workitem_id", Key, nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("series_id", Key, nullable=False),
        sa.Column("stack", sa.Text(), nullable=False),
        sa.Column("sop_instance_uids", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["series_id"],
            ["series.id"],
        ),
        sa.ForeignKeyConstraint(
            ["workitem_id"],
            ["workitem.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_workitem_input_series_id", "workitem_input", ["series_id"], unique=False)
    op.create_index("ix_workitem_input_workitem_id", "workitem_input", ["workitem_id"], unique=False)
    op.create_table(
        "acceptance",
        sa.Column("workitem_id", Key, nullable=False),
        sa.Column("result_object_id", Key, nullable=False),
        sa.Column("at", UTCDateTime(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_object_id"],
            ["result_object.id"],
        ),
        sa.ForeignKeyConstraint(
            ["workitem_id"],
            ["workitem.id"],
        ),
        sa.PrimaryKeyConstraint("workitem_id", "result_object_id"),
    )
    op.create_table(
        "audit",
        sa.Column("id", Key, nullable=False),
        sa.Column("at", UTCDateTime(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("workitem_id", Key, nullable=True),
        sa.Column("study_id", Key, nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["study.id"],
        ),
        sa.ForeignKeyConstraint(
            ["workitem_id"],
            ["workitem.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_audit_study_id", "audit", ["study_id"], unique=False)
    op.create_index("ix_audit_workitem_id", "audit", ["workitem_id"], unique=False)
