"""Name the tasks and the tool calls that `testing.people` stores. Replace it with `taskchat.tasks`."""

from typing import Final

ROWS: Final = (
    "insert into task (user_id, title, description, completed)"
    " select user_id, 'Call number ' || t, 'after lunch', t %% 2 = 1"
)
"""Insert the row with the number `t` for each user."""

CALL: Final = (
    """'add_task', '{"title": "call number"}', 'ok', '{"id": 17, "title": "call number", "description": "","""
    """ "completed": false, "created_at": "2026-11-01T10:00:00Z", "updated_at": "2026-11-01T10:00:00Z"}'"""
)
"""Tool, arguments, outcome and result of each recorded call."""
