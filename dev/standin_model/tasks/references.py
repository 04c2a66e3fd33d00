"""Find the tasks that `it`, `them` and `the second one` mean: by the results of earlier turns, as a model would."""

from dev.standin_model.conversation import Conversation, Json, MadeCall, Turn
from dev.standin_model.script import Result

CHANGES = frozenset({"add_task", "complete_task", "update_task", "delete_task"})


def last_tasks(conversation: Conversation) -> list[int]:
    """Return the ids of the tasks that the newest turn with a task changed, or else of those that it listed."""
    for turn in reversed(conversation.turns[:-1]):
        if tasks := changed(turn) or listed(turn):
            return list(dict.fromkeys(task["id"] for task in tasks))
    return []


def newest_changes(conversation: Conversation) -> list[MadeCall]:
    """Return the calls with which the newest turn tried to change tasks."""
    for turn in reversed(conversation.turns[:-1]):
        if calls := [made for made in turn.calls if made.call.name in CHANGES]:
            return calls
    return []


def changed(turn: Turn) -> list[Json]:
    """Return the tasks that a turn changed, as they were afterwards."""
    found = (Result.read(made.output or "").value for made in turn.calls if made.call.name in CHANGES)
    return [task for task in found if task and "id" in task]


def listed(turn: Turn) -> list[Json]:
    """Return the tasks that a turn listed."""
    found = (Result.read(made.output or "").value or {} for made in turn.calls if made.call.name == "list_tasks")
    return [task for page in found for task in page.get("tasks", ())]
