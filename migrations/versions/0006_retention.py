"""Let retention find the old rows of the two tables that no index has by their day."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INDEXES = {"erased_call_made_idx": "erased_call (made_on)", "allowance_day_idx": "allowance (day)"}


def upgrade() -> None:
    for name, columns in INDEXES.items():
        op.execute(f"create index {name} on {columns}")


def downgrade() -> None:
    for name in INDEXES:
        op.execute(f"drop index {name}")
