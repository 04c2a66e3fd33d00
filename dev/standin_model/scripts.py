"""What each wish takes: the tool calls it needs, one after the other, and what there is to say in the end.

A script yields the calls it needs next, all of them reading or all writing, and is sent their results.
"""

import textwrap
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from .conversation import Conversation, Json, Turn
from .faults import simulated
from .sentences import (
    Add,
    Change,
    Delete,
    Finish,
    RecallMessage,
    RecallTools,
    Show,
    Simulate,
    Status,
    Target,
    Unclear,
    Wish,
)

MAX_PAGES = 50  # a list that never ends would otherwise never end here either
EMPTY = {
    "pending": "Nothing is left to do.",
    "completed": "Nothing is completed yet.",
    "all": "You have no tasks.",
}
HEADINGS = {"pending": "Left to do", "completed": "Completed", "all": "Your tasks"}
NOT_UNDERSTOOD = "I did not understand"
ECHO_LENGTH = 60  # characters of what the person wrote that a sentence repeats


class Trouble(Exception):
    """Raised in a script when its wish cannot be fulfilled; its text is the sentence to say."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A tool call that a script needs."""

    tool: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool returned: as text, and as an object if it is one. Where it is none, the text says what went wrong."""

    text: str
    value: Json | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Something to say. Neighbours with the same verb become one sentence; without a verb it is a sentence already."""

    detail: str
    verb: str = ""


Script = Generator[list[Ask], Any, list[Outcome]]
Steps = Generator[list[Ask], Any, list[Json]]


def script_for(wish: Wish, conversation: Conversation) -> Script:
    match wish:
        case Add():
            return _add(wish)
        case Show():
            return _show(wish.status)
        case Finish():
            return _each(wish.target, "complete_task", "Finished", "finish", "pending")
        case Delete():
            return _each(wish.target, "delete_task", "Deleted", "delete", "all")
        case Change():
            return _change(wish)
        case RecallMessage() | RecallTools():
            return _say(Outcome(_recall(wish, conversation.turns[:-1])))
        case Simulate():
            return _say(Outcome(_simulated(wish.said)))
        case Unclear():
            return _say(Outcome(f"\u201c{_short(wish.text)}\u201d", NOT_UNDERSTOOD))


def _say(outcome: Outcome) -> Script:
    """A script without any call; `yield from` nothing makes it a generator."""
    yield from ()
    return [outcome]


def _recall(wish: RecallMessage | RecallTools, earlier: list[Turn]) -> str:
    if isinstance(wish, RecallTools):
        return _tools_used(earlier)
    return f"You said: {earlier[-1].said}" if earlier else "You said nothing before this."


def _simulated(said: str) -> str:
    name = simulated(said)
    return f"Simulated {name}." if name else f"I know no such fault: {_short(said)}."


def _tools_used(turns: Iterable[Turn]) -> str:
    names = list(dict.fromkeys(made.call.name for turn in turns for made in turn.calls))
    return f"Earlier I used {enumerate_names(names)}." if names else "I have used no tools before this."


def _add(wish: Add) -> Script:
    arguments = {"title": wish.title} | ({"description": wish.description} if wish.description else {})
    results = yield [Ask("add_task", arguments)]
    return [_report(results[0], "Added", f"add {_short(wish.title)}")]


def _show(status: Status) -> Script:
    tasks = yield from _list(status, "list your tasks")
    if not tasks:
        return [Outcome(EMPTY[status])]
    return [
        Outcome(f"{HEADINGS[status]}: {enumerate_names(_named(task, tell_done=status == 'all') for task in tasks)}.")
    ]


def _each(target: Target, tool: str, done: str, to_do: str, status: Status) -> Script:
    """Finish or delete every task that is meant."""
    task_ids = yield from _choose(target, to_do, status)
    results = yield [Ask(tool, {"task_id": task_id}) for task_id in task_ids]
    pairs = zip(task_ids, results, strict=True)
    return [_report(result, done, f"{to_do} {task_id}") for task_id, result in pairs]


def _change(wish: Change) -> Script:
    task_ids = yield from _choose(wish.target, "change", "all")
    if len(task_ids) > 1:
        raise Trouble("I change one task at a time.")
    [task_id] = task_ids
    results = yield [Ask("update_task", {"task_id": task_id, wish.field: wish.text})]
    if wish.field == "title":
        return [_report(results[0], f"Renamed {task_id} to", f"rename {task_id}")]
    return [_report(results[0], "Described", f"describe {task_id}", f" as \u201c{wish.text}\u201d")]


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
            raise Trouble(f"I could not {to_do}: {_clause(page.text)}.")
        tasks += page.value["tasks"]
        if not (cursor := page.value.get("next_cursor")):
            break
    return tasks


def _report(result: Result, done: str, to_do: str, suffix: str = "") -> Outcome:
    if result.value is None or "id" not in result.value:
        return Outcome(f"I could not {to_do}: {_clause(result.text)}.")
    return Outcome(_named(result.value) + suffix, done)


def _clause(error: str) -> str:
    """A tool's error sentence, to stand inside another sentence."""
    return error.strip().rstrip(".") or "the tool did not say why"


def _named(task: Json, *, tell_done: bool = False) -> str:
    done = ", done" if tell_done and task.get("completed") else ""
    return f"{task.get('title', 'task')} ({task['id']}{done})"


def _short(text: str) -> str:
    return textwrap.shorten(text, ECHO_LENGTH, placeholder="\u2026")


def enumerate_names(names: Iterable[str]) -> str:
    *first, last = list(names)
    return f"{', '.join(first)} and {last}" if first else last
