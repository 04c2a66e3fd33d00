"""Fulfil each wish: the tool calls it needs, one after the other, and what there is to say in the end."""

import re
from collections.abc import Generator
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from dev.standin_model.conversation import Conversation, Json
from dev.standin_model.script import Ask, Outcome, Result, Script, Steps, Trouble, clause, enumerate_names, short

from . import days

Status = Literal["all", "pending", "completed"]


@dataclass(frozen=True, slots=True)
class Target:
    """The task that is meant: by number, by words of its title, or every one of a status ('any': not said which)."""

    task_id: int | None = None
    words: str = ""
    every: Status | Literal["any"] | None = None


ONE_AT_A_TIME = "I change one task at a time."
MAX_PAGES = 50  # a list that never ends would otherwise never end here either
EMPTY = {
    "pending": "Nothing is left to do.",
    "completed": "Nothing is completed yet.",
    "all": "You have no tasks.",
}
HEADINGS = {"pending": "Left to do", "completed": "Completed", "all": "Your tasks"}


def add(conversation: Conversation, title: str, description: str | None, when: str | None) -> Script:
    due = days.due(when, _today(conversation)) if when else None
    given = {"title": title, "description": description, "due": due}
    [result] = yield [Ask("add_task", {name: value for name, value in given.items() if value})]
    return [report(result, "Added", f"add {short(title)}")]


def show(status: Status) -> Script:
    tasks = yield from _list("list your tasks", status=status)
    if not tasks:
        return [Outcome(EMPTY[status])]
    return [
        Outcome(f"{HEADINGS[status]}: {enumerate_names(named(task, tell_done=status == 'all') for task in tasks)}.")
    ]


def show_due(conversation: Conversation, status: Status, words: str) -> Script:
    """Show the tasks of a status that are due in a period."""
    due = days.period(words, _today(conversation))
    tasks = yield from _list("list your tasks", status=status, due=due)
    period = "overdue" if due == "overdue" else f"due {words}"
    if not tasks:
        return [Outcome(f"Nothing is {period}.")]
    return [Outcome(f"{period[0].upper()}{period[1:]}: {enumerate_names(map(named, tasks))}.")]


def each(target: Target, tool: str, done: str, to_do: str, status: Status) -> Script:
    """Finish or delete every task that is meant."""
    task_ids = yield from _choose(target, to_do, status)
    results = yield [Ask(tool, {"task_id": task_id}) for task_id in task_ids]
    pairs = zip(task_ids, results, strict=True)
    return [report(result, done, f"{to_do} {task_id}") for task_id, result in pairs]


def change(target: Target, field: Literal["title", "description", "due"], text: str) -> Script:
    task_ids = yield from _choose(target, "change", "all")
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


def move(conversation: Conversation, target: Target, when: str) -> Script:
    """Move one task to another day. It keeps its time if the message gives none."""
    if target.every is not None:
        raise Trouble(ONE_AT_A_TIME)
    due = days.due(when, _today(conversation))
    task = _only_match((yield from _list("move it", status="all")), target)
    if "T" not in due:
        due += _time_of(task.get("due") or "")
    [result] = yield [Ask("update_task", {"task_id": task["id"], "due": due})]
    return [report(result, "Moved", f"move {task['id']}")]


def _time_of(due: str) -> str:
    """Return the time and the zone of a date. Beside a named zone, drop the offset: another day may have another."""
    return re.sub(r"[+-][\d:]+(?=\[)", "", due[len("2026-11-27") :])


def _today(conversation: Conversation) -> date:
    if conversation.turn.today is None:
        raise Trouble("I do not know which day it is: the request has no context line.")
    return conversation.turn.today


def _choose(target: Target, to_do: str, status: Status) -> Generator[list[Ask], Any, list[int]]:
    """The ids of the tasks that are meant; words must point at one task."""
    if target.task_id is not None:
        return [target.task_id]
    if target.every is not None:
        return (yield from _choose_every(target, to_do, status))
    tasks = yield from _list(f"{to_do} \u201c{target.words}\u201d", status=status)
    return [_only_match(tasks, target)["id"]]


def _choose_every(target: Target, to_do: str, status: Status) -> Generator[list[Ask], Any, list[int]]:
    wanted: Any = status if target.every == "any" else target.every
    tasks = yield from _list(f"{to_do} them", status=wanted)
    if not tasks:
        raise Trouble(f"There is nothing to {to_do}.")
    return [task["id"] for task in tasks]


def _only_match(tasks: list[Json], target: Target) -> Json:
    found = [task for task in tasks if _matches(task, target)]
    exact = [task for task in found if task["title"].lower() == target.words.lower()]
    said = target.words or str(target.task_id)
    match exact or found:
        case [task]:
            return task
        case []:
            raise Trouble(f"I found no such task: \u201c{said}\u201d. Which one do you mean?")
        case several:
            raise Trouble(f"Several tasks match \u201c{said}\u201d: {enumerate_names(map(named, several))}. Which one?")


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
    date = f", {task['weekday']} {due[:10]} {due[11:16]}".rstrip() if due else ""
    done = ", done" if tell_done and task.get("completed") else ""
    return f"{task.get('title', 'task')} ({task['id']}{date}{done})"
