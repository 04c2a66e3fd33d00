"""Name the messages, the tool calls and the rows that the bench measures. Replace it with `taskchat.tasks`.

`testing.tasks` names those that the tests use too. `bench.floor` is a task service by itself.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from taskchat import cursor as cursors

THINGS: Final = "tasks"
"""The word for the rows, in the report."""

ADD: Final = "Add buy milk"
"""A message for one tool call. Its result holds the id of the new row."""

ERRANDS: Final = ("Add errand {}", "Finish {}", "Add letter {}", "What is left?")
"""Messages for one tool call each. The braces stand for the id in the result before."""

TEXT: Final = (
    "case n %% 2 when 0 then 'Add call number ' || n else 'Added call number ' || n || ' (17).' end"  # asked, answered
)
"""SQL for the text of the message with the number `n`."""

INSERT: Final = "insert into task (user_id, title, description) values ('{user}', 'buy milk', '')"
"""The statement of a tool call."""

ADD_CALL: Final = {"tool": "add_task", "title": "buy eggs"}

LIST: Final = "list_tasks"

LIST_STATEMENTS: Final = "queries._PAGE"
"""The names of the statements of a listing begin with this."""

STATES: Final = {
    state: f"select id from task where user_id = %s and due_on is null and {condition} order by id"
    for state, condition in {"all": "true", "pending": "not completed", "completed": "completed"}.items()
}
"""The lists, and a query for the ids without a date in each, which come last."""


DUE_ROWS: Final = (
    "insert into task (user_id, title, description, completed, due_on, due_at, due_zone) select %(user)s,"
    " 'Call number ' || n, 'after lunch', n %% 2 = 1, current_date + n %% 400 - 200, case n %% 4 when 0 then"
    " (current_date + n %% 400 - 200 + time '09:00') at time zone 'Europe/Paris' end, case n %% 4 when 0 then"
    " 'Europe/Paris' end from generate_series(0, %(rows)s - 1) n"
)
"""Insert rows for one person. They are due in the 200 days before today and the 200 after, 25 on each day."""

_TODAY: Final = datetime.now(UTC).date()

DUE: Final = {
    "due this week": {"due": "this_week", "timezone": "Europe/Paris"},
    "overdue": {"due": "overdue", "timezone": "Europe/Paris"},
    "due within 30 days": {"due": f"{_TODAY - timedelta(30)}/{_TODAY + timedelta(30)}"},
}
"""Queries of the list."""


def changes(row: int) -> tuple[str, ...]:
    """Return messages that change, rename and delete the row: one tool call each."""
    return f"Finish {row}", f"Rename {row} to buy oat milk", f"Delete {row}"


def page(state: str, cursor: int | None) -> dict[str, Any]:
    """Return the arguments that list a page: the first, or the one behind a task without a date."""
    return {"status": state, "cursor": cursor and cursors.write(None, None, cursor)}
