"""Create the table of the limits: when a user's bucket is full again, and the model tokens of their day."""

from alembic import op

from migrations.policies import owner_only, split

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Each turn updates a row twice, and no indexed column. With room on the page, Postgres leaves the index alone.
TABLE = """
create table allowance (
    user_id text not null,
    door text not null constraint allowance_door_check check (door in ('chat', 'mcp')),
    full_at timestamptz not null,
    day date not null,
    model_tokens bigint not null,
    primary key (user_id, door)
) with (fillfactor = 50);
"""


def upgrade() -> None:
    for statement in split(TABLE + owner_only("allowance")):
        op.execute(statement)


def downgrade() -> None:
    op.execute("drop table allowance")
