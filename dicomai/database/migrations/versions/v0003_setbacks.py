"""How often a destination did not understand, or lost, what it was sent."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column."""
    op.add_column("workitem", sa.Column("setbacks", sa.Integer(), nullable=False, server_default="0"))
