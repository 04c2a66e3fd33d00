"""Fulfil each wish: the tool calls it needs, one after the other, and what there is to say in the end."""

import re
from collections.abc import Generator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal

from dev.standin_model.conversation import Conversation, Json
from dev.standin_model.script import Ask, Outcome, Result, Script, Steps, Trouble, clause, enumerate_names, short

from . import days
from .references import last_tasks

Status = Literal["all", "pending", "completed"]


@dataclass(frozen=True, slots=True)
class Target:
    """The task that is meant: by number, by words of its title, by its place, or every one of a status."""

    task_id: int | None = None
    words: str = ""
    every: Status | Literal["any"] | None = None
    """`any`: the message does not say which status."""
    nth: int | None = None
    """The place among the tasks with these words, or among those of the last answer; -1 is the last."""
    is_reference: bool = False
    """The task of an earlier turn: `it`."""
    is_plural: bool = False
    """All tasks of an earlier turn: `them`."""
    verb: str = ""
    """Of several tasks with these words, the one with this verb is meant: `I bought the milk`."""


ONE_AT_A_TIME = "I change one task at a time."
WHICH = "Which task do you mean?"
MAX_PAGES = 50  # a list that never ends would otherwise never end here either
EMPTY = {
    "pending": "Nothing is left to do.",
    "completed": "Nothing is completed yet.",
    "all": "You have no tasks.",
}
HEADINGS = {"pending": "Left to do", "completed": "Completed", "all": "Your tasks"}


def add(conversation: Conversation, title: str, description: str | None, when: str | None) -> Script:
    due = days.read(when, _now(conversation)).due(_now(conversation)) if when else None
    given = {"title": title, "description": description, "due": due}
    [result] = yield [Ask("add_task", {name: value for name, value in given.items() if value})]
    return [report(result, "Added", f"add {short(title)}")]


def show(_: Conversation, status: Status) -> Script:
    tasks = yield from _list("list your tasks", status=status)
    if not tasks:
        return [Outcome(EMPTY[status])]
    return [
        Outcome(f"{HEADINGS[status]}: {enumerate_names(named(task, tell_done=status == 'all') for task in tasks)}.")
    ]


def count(_: Conversation) -> Script:
    tasks = yield from _list("count your tasks", status="all")
    done = sum(task["completed"] for task in tasks)
    left = len(tasks) - done
    return [Outcome(f"You have {len(tasks)} tasks: {left} left and {done} done." if tasks else EMPTY["all"])]


def find(_: Conversation, words: str) -> Script:
    """Show the tasks with these words: the person asks when one is due, or if it is done."""
    tasks = yield from _list(f"find \u201c{words}\u201d", status="all")
    found = [task for task in tasks if _matches(task, Target(words=words))]
    if not found:
        return [Outcome(f"You have no such task: \u201c{short(words)}\u201d.")]
    return [Outcome(f"Found: {enumerate_names(named(task, tell_done=True) for task in found)}.")]


def show_due(conversation: Conversation, status: Status, words: str) -> Script:
    """Show the tasks of a status that are due in a period."""
    due = days.period(words, _now(conversation).date())
    tasks = yield from _list("list your tasks", status=status, due=due)
    period = "overdue" if due == "overdue" else f"due {words}"
    if not tasks:
        return [Outcome(f"Nothing is {period}.")]
    return [Outcome(f"{period[0].upper()}{period[1:]}: {enumerate_names(map(named, tasks))}.")]


def finish(conversation: Conversation, target: Target) -> Script:
    return _each(conversation, target, ("complete_task", {}), ("Finished", "finish"), "pending")


def reopen(conversation: Conversation, target: Target) -> Script:
    return _each(conversation, target, ("update_task", {"completed": False}), ("Reopened", "reopen"), "completed")


def delete(conversation: Conversation, target: Target) -> Script:
    return _each(conversation, target, ("delete_task", {}), ("Deleted", "delete"), "all")


def _each(
    conversation: Conversation, target: Target, call: tuple[str, Json], verbs: tuple[str, str], status: Status
) -> Script:
    """Make the same call for every task that is meant. `verbs` are those of success and of failure."""
    done, to_do = verbs
    task_ids = yield from _choose(conversation, target, to_do, status)
    results = yield [Ask(call[0], {"task_id": task_id, **call[1]}) for task_id in task_ids]
    pairs = zip(task_ids, results, strict=True)
    return [report(result, done, f"{to_do} {task_id}") for task_id, result in pairs]


def change(
    conversation: Conversation, target: Target, field: Literal["title", "description", "due"], text: str
) -> Script:
    task_ids = yield from _choose(conversation, target, "change", "all")
    if len(task_ids) > 1:
        raise Trouble(ONE_AT_A_TIME)
    [task_id] = task_ids
    done, to_do, suffix = {
        "title": (f"Renamed {task_id} to", "rename", ""),
        "description": ("Described", "describe", f" as \u201c{text}\u201d"),
        "due": ("Cleared the date of", "clear the date of", ""),
    }[field]
    [result] = yield [Ask("update_task", {"task_id": task_id, field: text})]
    return [report(result, done, f"{to_do} {task_id}", suffix)]


def move(conversation: Conversation, target: Target, words: str) -> Script:
    """Move one task. It keeps its time if the message gives none, and its day if the message gives a time only."""
    if target.every is not None or target.is_plural:
        raise Trouble(ONE_AT_A_TIME)
    when = days.read(words, _now(conversation))
    task = yield from _read_one(conversation, target)
    due = task.get("due") or ""
    day = when.day or due[: len("2026-11-27")]
    if not day:
        new = when.due(_now(conversation))
    else:
        new = day + (f"T{when.time}" if when.time else _time_of(due))
    [result] = yield [Ask("update_task", {"task_id": task["id"], "due": new})]
    return [report(result, "Moved", f"move {task['id']}")]


def postpone(conversation: Conversation, target: Target, words: str) -> Script:
    """Move one task by a number of days or weeks."""
    task = yield from _read_one(conversation, target)
    due = task.get("due") or ""
    if not due:
        raise Trouble(f"{named(task)} has no date. To which day shall I move it?")
    day = date.fromisoformat(due[: len("2026-11-27")]) + timedelta(days.length(words))
    [result] = yield [Ask("update_task", {"task_id": task["id"], "due": f"{day}{_time_of(due)}"})]
    return [report(result, "Moved", f"move {task['id']}")]


def _time_of(due: str) -> str:
    """Return the time and the zone of a date. Beside a named zone, drop the offset: another day may have another."""
    return re.sub(r"[+-][\d:]+(?=\[)", "", due[len("2026-11-27") :])


def _now(conversation: Conversation) -> datetime:
    if conversation.turn.now is None:
        raise Trouble("I do not know which day it is: the request has no context line.")
    return conversation.turn.now


def _choose(
    conversation: Conversation, target: Target, to_do: str, status: Status
) -> Generator[list[Ask], Any, list[int]]:
    """Return the ids of the tasks that are meant. Words must point at one task."""
    if target.task_id is not None:
        return [target.task_id]
    if target.is_reference or target.is_plural:
        return _meant(conversation, target)
    if target.every is not None:
        return (yield from _choose_every(target, to_do, status))
    if target.nth is not None and not target.words and (earlier := last_tasks(conversation)):
        return [_nth(earlier, target.nth)]
    tasks = yield from _list(f"{to_do} \u201c{target.words}\u201d", status=status)
    return [_only_match(tasks, target)["id"]]


def _meant(conversation: Conversation, target: Target) -> list[int]:
    """Return the id of `it`, or those of `them`. Raises Trouble if it is not clear which task `it` is."""
    tasks = last_tasks(conversation)
    if not tasks or (len(tasks) > 1 and not target.is_plural):
        raise Trouble(WHICH)
    return tasks


def _nth(found: list[Any], nth: int) -> Any:
    if nth > len(found) or not found:
        raise Trouble(f"I found {len(found)} such tasks. {WHICH}")
    return found[nth - 1 if nth > 0 else nth]


def _choose_every(target: Target, to_do: str, status: Status) -> Generator[list[Ask], Any, list[int]]:
    wanted: Any = status if target.every == "any" else target.every
    tasks = yield from _list(f"{to_do} them", status=wanted)
    if not tasks:
        raise Trouble(f"There is nothing to {to_do}.")
    return [task["id"] for task in tasks]


def _read_one(conversation: Conversation, target: Target) -> Generator[list[Ask], Any, Json]:
    """Return the task that is meant, as it is now."""
    if target.is_reference:
        [target] = [Target(task_id=task_id) for task_id in _meant(conversation, target)]
    elif target.nth is not None and not target.words and (earlier := last_tasks(conversation)):
        target = Target(task_id=_nth(earlier, target.nth))
    return _only_match((yield from _list("move it", status="all")), target)


def _only_match(tasks: list[Json], target: Target) -> Json:
    found = [task for task in tasks if _matches(task, target)]
    if target.nth is not None:
        task: Json = _nth(found, target.nth)
        return task
    exact = [task for task in found if task["title"].lower() == target.words.lower()]
    by_verb = [task for task in found if target.verb and target.verb in task["title"].lower()]
    said = target.words or str(target.task_id)
    match exact or by_verb or found:
        case [task]:
            return task
        case []:
            raise Trouble(f"I found no such task: \u201c{short(said)}\u201d. Which one do you mean?")
        case several:
            raise Trouble(
                f"Several tasks match \u201c{short(said)}\u201d: {enumerate_names(map(named, several))}. Which one?"
            )


def _matches(task: Json, target: Target) -> bool:
    if target.task_id is not None:
        return bool(task["id"] == target.task_id)
    return all(word in task["title"].lower() for word in target.words.lower().split())


def _list(to_do: str, **filters: str) -> Steps:
    """List all tasks that the filters let through, page by page."""
    tasks: list[Json] = []
    cursor = None
    for _ in range(MAX_PAGES):
        [page] = yield [Ask("list_tasks", {**filters, "cursor": cursor})]
        if page.value is None or "tasks" not in page.value:
            raise Trouble(f"I could not {to_do}: {clause(page.text)}.")
        tasks += page.value["tasks"]
        if not (cursor := page.value.get("next_cursor")):
            break
    return tasks


def report(result: Result, done: str, to_do: str, suffix: str = "") -> Outcome:
    """Return the outcome of a call that changes a task: done with it, or the sentence of the tool's error."""
    if result.value is None or "id" not in result.value:
        return Outcome(f"I could not {to_do}: {clause(result.text)}.")
    return Outcome(named(result.value) + suffix, done)


def named(task: Json, *, tell_done: bool = False) -> str:
    """Return the task's title, and in brackets its id and its date."""
    due = task.get("due") or ""
    dated = f", {task['weekday']} {due[:10]} {due[11:16]}".rstrip() if due else ""
    done = ", done" if tell_done and task.get("completed") else ""
    return f"{task.get('title', 'task')} ({task['id']}{dated}{done})"
