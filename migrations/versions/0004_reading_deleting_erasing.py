"""Let a person read, delete and erase: indexes by activity, calls without their conversation, a table of erased calls.

A tool call outlives its conversation as audit. So it refers to none, and deleting a conversation need not look for its
calls by an index that each call would have to be written into.
"""

from alembic import op

from migrations.policies import split

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# No policy lets a role read erased calls: an operator who accounts for them has BYPASSRLS.
TABLES = """
create index conversation_activity_idx on conversation (user_id, updated_at, id);
create index conversation_updated_idx on conversation (updated_at);
alter table tool_call drop constraint tool_call_user_id_conversation_id_fkey;
create index tool_call_created_idx on tool_call using brin (created_at);
alter table allowance drop constraint allowance_door_check;
alter table allowance add constraint allowance_door_check check (door in ('chat', 'mcp', 'data'));
create table erased_call (
    pseudonym uuid not null,
    id bigint generated always as identity,
    door text not null,
    tool text not null,
    outcome text not null,
    made_on date not null,
    primary key (pseudonym, id)
);
alter table erased_call enable row level security;
alter table erased_call force row level security;
create policy append_only on erased_call for insert with check (true);
"""

BACK = """
drop table erased_call;
delete from allowance where door = 'data';
alter table allowance drop constraint allowance_door_check;
alter table allowance add constraint allowance_door_check check (door in ('chat', 'mcp'));
drop index tool_call_created_idx;
delete from tool_call c where conversation_id is not null and not exists
    (select from conversation o where o.user_id = c.user_id and o.id = c.conversation_id);
alter table tool_call add foreign key (user_id, conversation_id)
    references conversation (user_id, id) on delete cascade;
drop index conversation_updated_idx;
drop index conversation_activity_idx;
"""


def upgrade() -> None:
    for statement in split(TABLES):
        op.execute(statement)


def downgrade() -> None:
    for statement in split(BACK):
        op.execute(statement)
