"""Undo the newest turn that changed tasks: reverse its calls, the last one first, by their results in the history."""

from collections.abc import Generator
from typing import Any

from dev.standin_model.conversation import Conversation, Json
from dev.standin_model.script import Ask, Outcome, Result, Script, short

from .references import newest_changes
from .scripts import report

FIELDS = ("title", "description", "completed", "due")

Reversal = Generator[list[Ask], Any, list[Outcome]]


def undo(conversation: Conversation) -> Script:
    """Reverse the calls of the newest turn that tried to change tasks. A call that failed changed nothing."""
    outcomes: list[Outcome] = []
    new_ids: dict[int, int] = {}  # of deleted tasks, which come back under another id
    for made in reversed(newest_changes(conversation)):
        after = Result.read(made.output or "").value
        if after and "id" in after:
            outcomes += yield from _reverse(made.call.name, after, new_ids)
    return outcomes or [Outcome("There is nothing to undo.")]


def _reverse(tool: str, after: Json, new_ids: dict[int, int]) -> Reversal:
    task_id = new_ids.get(after["id"], after["id"])
    if tool == "add_task":
        [deleted] = yield [Ask("delete_task", {"task_id": task_id})]
        return [report(deleted, "Deleted", f"delete {task_id}")]
    if tool == "delete_task":
        return (yield from _add_again(after["before"], new_ids))
    before = {name: after["before"][name] for name in FIELDS if after["before"][name] != after[name]}
    if not before:
        return []
    if "due" in before:
        before["due"] = before["due"] or "none"
    [updated] = yield [Ask("update_task", {"task_id": task_id, **before})]
    return [report(updated, "Restored", f"restore {task_id}")]


def _add_again(task: Json, new_ids: dict[int, int]) -> Reversal:
    given = {name: task[name] for name in ("title", "description", "due") if task[name]}
    [result] = yield [Ask("add_task", given)]
    if result.value and "id" in result.value:
        new_ids[task["id"]] = result.value["id"]
        if task["completed"]:
            [result] = yield [Ask("complete_task", {"task_id": result.value["id"]})]
    return [report(result, "Restored", f"restore {short(task['title'])}")]
