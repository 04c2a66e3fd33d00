"""Make the table of what a user may use at each entry point: when the bucket is full again, and the day's tokens."""

from alembic import op

from migrations.policies import owner_only, split

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Each turn updates a row twice, in no indexed column: with free space on the page, Postgres leaves the index unchanged.
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
