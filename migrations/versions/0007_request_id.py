"""Let a record of a tool call name its request, as its audit line does."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("alter table tool_call add column request_id text")


def downgrade() -> None:
    op.execute("alter table tool_call drop column request_id")
