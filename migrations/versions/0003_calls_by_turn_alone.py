"""Drop the index of calls by conversation: no statement of a turn needs it, and each call wrote to it.

It also misled the planner: to read all calls of a person through it looked cheaper than to look up the calls of twenty
turns. When a conversation is deleted, Postgres finds its calls by the primary key, which begins with the owner.
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
