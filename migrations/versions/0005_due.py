"""Let a task be due: on a day, or at an instant of a time zone."""

from alembic import op

from migrations.policies import split

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

DUE_ON = "case when due_on is null then 'infinity'::date else due_on end"
DUE_AT = "case when due_at is null then '-infinity'::timestamptz else due_at end"
TABLES = f"""
alter table task add column due_on date, add column due_at timestamptz, add column due_zone text;
create index task_due_idx on task (user_id, ({DUE_ON}), ({DUE_AT}), id);
create index task_state_idx on task (user_id, completed, ({DUE_ON}), ({DUE_AT}), id);
drop index task_completed_idx;
create index task_finished_idx on task (updated_at) where completed;
"""


def upgrade() -> None:
    for statement in split(TABLES):
        op.execute(statement)


def downgrade() -> None:
    op.execute("create index task_completed_idx on task (user_id, completed, id)")
    for index in ("task_finished_idx", "task_state_idx", "task_due_idx"):
        op.execute(f"drop index {index}")
    op.execute("alter table task drop column due_on, drop column due_at, drop column due_zone")
