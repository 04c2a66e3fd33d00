"""Name the tasks and the tool calls that `testing.people` stores. Replace it with `taskchat.tasks`."""

from typing import Final

_DAY: Final = "(current_date + t %% 400 - 200)"

ROWS: Final = (
    "insert into task (user_id, title, description, completed, due_on, due_at, due_zone)"
    " select user_id, 'Call number ' || t, 'after lunch', t %% 2 = 1,"
    f" case when t %% 3 > 0 then {_DAY} end, case t %% 3 when 2 then ({_DAY} + time '09:00') at time zone 'UTC' end,"
    " case t %% 3 when 2 then 'UTC' end"
)
"""Insert the row with the number `t` for each user: a third without a date, a third due on a day, a third at nine."""

CALL: Final = (
    """'add_task', '{"title": "call number"}', 'ok', '{"id": 17, "title": "call number", "description": "","""
    """ "completed": false, "due": null, "weekday": null,"""
    """ "created_at": "2026-11-01T10:00:00Z", "updated_at": "2026-11-01T10:00:00Z"}'"""
)
"""Tool, arguments, outcome and result of each recorded call."""
