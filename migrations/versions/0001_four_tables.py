"""Make the four tables. Each row is open to its owner only."""

from alembic import op

from migrations.policies import owner_only, split

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
create table conversation (
    user_id text not null,
    id uuid not null,
    title text not null,
    turn_id uuid,
    lease_until timestamptz,
    fence bigint not null default 0,
    next_position integer not null default 0,
    history_start integer not null default 0,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, id)
);
create table message (
    user_id text not null,
    conversation_id uuid not null,
    position integer not null,
    turn_id uuid not null,
    role text not null constraint message_role_check check (role in ('user', 'assistant')),
    content text not null,
    created_at timestamptz not null default clock_timestamp(),
    timezone text,
    request_hash text,
    usage json,
    primary key (user_id, conversation_id, position),
    unique (user_id, turn_id, role),
    foreign key (user_id, conversation_id) references conversation (user_id, id) on delete cascade
);
create table tool_call (
    user_id text not null,
    turn_id uuid not null,
    call_id text not null,
    position integer not null,
    conversation_id uuid,
    door text not null constraint tool_call_door_check check (door in ('chat', 'mcp')),
    tool text not null,
    arguments json not null,
    outcome text not null constraint tool_call_outcome_check check (outcome in ('ok', 'error')),
    result json not null,
    duration_ms double precision not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (user_id, turn_id, call_id),
    foreign key (user_id, conversation_id) references conversation (user_id, id) on delete cascade
);
create index tool_call_conversation_idx on tool_call (user_id, conversation_id);
create table task (
    user_id text not null,
    id bigint generated always as identity,
    title text not null,
    description text not null,
    completed boolean not null default false,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, id)
);
create index task_completed_idx on task (user_id, completed, id);
"""


def upgrade() -> None:
    policies = map(owner_only, ("conversation", "message", "tool_call", "task"))
    for statement in split("".join([TABLES, *policies])):
        op.execute(statement)


def downgrade() -> None:
    op.execute("drop table task, tool_call, message, conversation")
