"""Fulfil each wish: the tool calls it needs, one after the other, and what there is to say in the end."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

from dev.standin_model.conversation import Json
from dev.standin_model.script import Ask, Outcome, Result, Script, Steps, Trouble, clause, enumerate_names, short

Status = Literal["all", "pending", "completed"]


@dataclass(frozen=True, slots=True)
class Target:
    """The task that is meant: by number, by words of its title, or every one of a status ('any': not said which)."""

    task_id: int | None = None
    words: str = ""
    every: Status | Literal["any"] | None = None


MAX_PAGES = 50  # a list that never ends would otherwise never end here either
EMPTY = {
    "pending": "Nothing is left to do.",
    "completed": "Nothing is completed yet.",
    "all": "You have no tasks.",
}
HEADINGS = {"pending": "Left to do", "completed": "Completed", "all": "Your tasks"}


def add(title: str, description: str | None) -> Script:
    arguments = {"title": title} | ({"description": description} if description else {})
    results = yield [Ask("add_task", arguments)]
    return [_report(results[0], "Added", f"add {short(title)}")]


def show(status: Status) -> Script:
    tasks = yield from _list(status, "list your tasks")
    if not tasks:
        return [Outcome(EMPTY[status])]
    return [
        Outcome(f"{HEADINGS[status]}: {enumerate_names(_named(task, tell_done=status == 'all') for task in tasks)}.")
    ]


def each(target: Target, tool: str, done: str, to_do: str, status: Status) -> Script:
    """Finish or delete every task that is meant."""
    task_ids = yield from _choose(target, to_do, status)
    results = yield [Ask(tool, {"task_id": task_id}) for task_id in task_ids]
    pairs = zip(task_ids, results, strict=True)
    return [_report(result, done, f"{to_do} {task_id}") for task_id, result in pairs]


def change(target: Target, field: Literal["title", "description"], text: str) -> Script:
    task_ids = yield from _choose(target, "change", "all")
    if len(task_ids) > 1:
        raise Trouble("I change one task at a time.")
    [task_id] = task_ids
    results = yield [Ask("update_task", {"task_id": task_id, field: text})]
    if field == "title":
        return [_report(results[0], f"Renamed {task_id} to", f"rename {task_id}")]
    return [_report(results[0], "Described", f"describe {task_id}", f" as \u201c{text}\u201d")]


def _choose(target: Target, to_do: str, status: Status) -> Generator[list[Ask], Any, list[int]]:
    """The ids of the tasks that are meant; words must point at one task."""
    if target.task_id is not None:
        return [target.task_id]
    if target.every is not None:
        return (yield from _choose_every(target, to_do, status))
    tasks = yield from _list(status, f"{to_do} \u201c{target.words}\u201d")
    return [_only_match(tasks, target.words)["id"]]


def _choose_every(target: Target, to_do: str, status: Status) -> Generator[list[Ask], Any, list[int]]:
    wanted: Any = status if target.every == "any" else target.every
    tasks = yield from _list(wanted, f"{to_do} them")
    if not tasks:
        raise Trouble(f"There is nothing to {to_do}.")
    return [task["id"] for task in tasks]


def _only_match(tasks: list[Json], words: str) -> Json:
    found = [task for task in tasks if all(word in task["title"].lower() for word in words.lower().split())]
    exact = [task for task in found if task["title"].lower() == words.lower()]
    match exact or found:
        case [task]:
            return task
        case []:
            raise Trouble(f"I found no such task: \u201c{words}\u201d. Which one do you mean?")
        case several:
            raise Trouble(
                f"Several tasks match \u201c{words}\u201d: {enumerate_names(map(_named, several))}. Which one?"
            )


def _list(status: Status, to_do: str) -> Steps:
    """All tasks of a status, page by page."""
    tasks: list[Json] = []
    cursor = None
    for _ in range(MAX_PAGES):
        [page] = yield [Ask("list_tasks", {"status": status, "cursor": cursor})]
        if page.value is None or "tasks" not in page.value:
            raise Trouble(f"I could not {to_do}: {clause(page.text)}.")
        tasks += page.value["tasks"]
        if not (cursor := page.value.get("next_cursor")):
            break
    return tasks


def _report(result: Result, done: str, to_do: str, suffix: str = "") -> Outcome:
    if result.value is None or "id" not in result.value:
        return Outcome(f"I could not {to_do}: {clause(result.text)}.")
    return Outcome(_named(result.value) + suffix, done)


def _named(task: Json, *, tell_done: bool = False) -> str:
    done = ", done" if tell_done and task.get("completed") else ""
    return f"{task.get('title', 'task')} ({task['id']}{done})"
