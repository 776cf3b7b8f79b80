"""What belongs to a result, and what work has the same digest, without a look at every item."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the indices."""
    op.create_index("ix_workitem_result", "workitem", ["result_id"])
    op.create_index("ix_workitem_digest", "workitem", ["digest"])
