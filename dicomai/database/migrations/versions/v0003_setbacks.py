"""How often a destination did not understand, or lost, what it was sent; and how often it was asked for it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns."""
    for name in ("setbacks", "looks"):
        op.add_column("workitem", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
