"""Whose the study of a delivery is at its destination, where that is another patient."""

import sqlalchemy as sa
from alembic import op

from dicomai.database.tables import CleanText

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the columns."""
    for name in ("mismatch", "vouched"):
        op.add_column("workitem", sa.Column(name, CleanText(), nullable=False, server_default=""))
