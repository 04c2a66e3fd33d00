"""Drop the index of calls by conversation: no statement of a turn needs it, and each call had to be written into it.

It misled the planner too: to read all calls of a user through it, and drop most of them, looked cheaper than to look up
those of twenty turns. When a conversation is deleted, Postgres finds its calls through the primary key.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("drop index tool_call_conversation_idx")


def downgrade() -> None:
    op.execute("create index tool_call_conversation_idx on tool_call (user_id, conversation_id)")
