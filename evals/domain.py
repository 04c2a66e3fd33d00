"""Say how a case prepares, reads and compares tasks. Replace this file, and those in cases/, with `taskchat.tasks`."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from evals.dates import Clock, When
from evals.person import Person

ANY: Final = "any"
"""The `due` of a pattern that does not look at it."""

NONE: Final = "none"
"""The `due` that allows a task without a date among other days."""

State = dict[int, dict[str, Any]]
"""A person's tasks by their ids, as the route returns them."""


def _from_title(value: Any) -> Any:
    return {"title": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Dues = Annotated[list[str] | None, BeforeValidator(_as_list)]
"""Days and times of which one must fit. None: the task has no date."""


class Task(_Strict):
    """A task that exists before the first turn."""

    title: str
    description: str = ""
    due: str | None = None
    completed: bool = False


class NewTask(_Strict):
    """A task that must be there afterwards. `title` and `description` are patterns."""

    title: str
    description: str | None = None
    due: Dues = None
    completed: bool = False


class Change(_Strict):
    """New values of a task. Fields that are not given must stay as they were; `due: null` is a date taken away."""

    title: str | None = None
    description: str | None = None
    due: Dues = None
    completed: bool | None = None


Thing = Annotated[Task, BeforeValidator(_from_title)]


class Effects(_Strict):
    """The difference between the tasks before the first turn and those after the last. All else must be as it was."""

    added: list[Annotated[NewTask, BeforeValidator(_from_title)]] = Field(default_factory=list)
    done: list[str] = Field(default_factory=list)
    reopened: list[str] = Field(default_factory=list)
    deleted: list[str] = Field(default_factory=list)
    changed: dict[str, Change] = Field(default_factory=dict)

    @property
    def titles(self) -> list[str]:
        """Return the titles of all earlier tasks that it names."""
        return [*self.done, *self.reopened, *self.deleted, *self.changed]

    @property
    def dues(self) -> list[str]:
        """Return all days and times that it names."""
        holders: list[NewTask | Change] = [*self.added, *self.changed.values()]
        return [due for holder in holders for due in holder.due or () if due not in (ANY, NONE)]

    def __bool__(self) -> bool:
        """Return whether anything must differ."""
        return bool(self.added or self.titles)

    def changes(self) -> dict[str, Change]:
        """Return the new values of each task that must change."""
        marked = {title: Change(completed=True) for title in self.done}
        marked |= {title: Change(completed=False) for title in self.reopened}
        return marked | self.changed


def check(before: Sequence[Task], alternatives: Sequence[Effects]) -> None:
    """Raise ValueError if two tasks share a title, or if an effect names a task that does not exist."""
    titles = [task.title for task in before]
    if twice := {title for title in titles if titles.count(title) > 1}:
        raise ValueError(f"before: there are two tasks {sorted(twice)[0]!r}")
    for effects in alternatives:
        if unknown := set(effects.titles) - set(titles):
            raise ValueError(f"expect: there is no task {sorted(unknown)[0]!r} in before")


def dues(before: Sequence[Task]) -> list[str]:
    """Return all days and times of the tasks of a case."""
    return [task.due for task in before if task.due is not None]


async def prepare(person: Person, things: Sequence[Task], clock: Clock) -> None:
    """Create the tasks of a case, with the tools."""
    for task in things:
        due = {} if task.due is None else {"due": When.parse(task.due, clock).written()}
        made = await person.call_tool("add_task", title=task.title, description=task.description, **due)
        if task.completed:
            await person.call_tool("complete_task", task_id=made["id"])


async def read(person: Person) -> State:
    """Return all tasks of the person."""
    tasks: State = {}
    query: dict[str, str | int] = {"limit": 100}
    while True:
        page = await person.get("/tasks", **query)
        tasks |= {task["id"]: task for task in page["tasks"]}
        if page["next_cursor"] is None:
            return tasks
        query["cursor"] = page["next_cursor"]


@dataclass(frozen=True)
class Difference:
    """A way in which the tasks differ from what they should be."""

    text: str
    is_unwanted: bool
    """Something changed that should not have, or to another value. Otherwise a change is missing."""


def differences(effects: Effects, before: State, after: State, clock: Clock) -> list[Difference]:
    """Return each way in which the tasks differ from what they should be."""
    gone, new = _pair(before, after)
    kept = {task["title"] for key, task in before.items() if key in after}
    found = [Difference(f"{title!r} was deleted", True) for title in gone if title not in effects.deleted]
    found += [Difference(f"{title!r} was not deleted", False) for title in effects.deleted if title in kept]
    changes = effects.changes()
    for key in before.keys() & after.keys():
        expected = changes.get(before[key]["title"], Change())
        found += _wrong_values(expected, before[key], after[key], clock)
    return found + _wrong_additions(effects.added, new, clock)


def _pair(before: State, after: State) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the titles of the deleted tasks, and the new tasks. A task that came back under a new id is neither."""
    new = {key: task for key, task in after.items() if key not in before}
    gone = []
    for key in before.keys() - after.keys():
        back = next((other for other, task in new.items() if _content(task) == _content(before[key])), None)
        if back is None:
            gone.append(before[key]["title"])
        else:
            del new[back]
    return gone, list(new.values())


def _content(task: Mapping[str, Any]) -> tuple[Any, ...]:
    return task["title"], task["description"], task["completed"], task["due"]


def _wrong_values(
    expected: Change, before: Mapping[str, Any], after: Mapping[str, Any], clock: Clock
) -> Iterator[Difference]:
    """Yield each field of a task that is not as expected, or not as it was."""
    for field in ("title", "description", "due", "completed"):
        if field not in expected.model_fields_set:
            fits = after[field] == before[field]
        else:
            fits = _fits(field, getattr(expected, field), after[field], clock)
        if not fits:
            text = f"{before['title']!r} has {field} {after[field]!r} (before: {before[field]!r})"
            yield Difference(text, is_unwanted=after[field] != before[field])


def _fits(field: str, expected: Any, found: Any, clock: Clock) -> bool:
    match field:
        case "due":
            return _fits_due(expected, found, clock)
        case "completed":
            return bool(found == expected)
        case _:
            return fits_text(expected, found)


def _fits_due(expected: Sequence[str] | None, found: str | None, clock: Clock) -> bool:
    if expected is None or found is None:
        return expected == found or expected == [ANY] or NONE in (expected or ())
    return any(due == ANY or (due != NONE and When.parse(due, clock).fits(found)) for due in expected)


def fits_text(pattern: str, text: str) -> bool:
    """Return whether one of the alternatives of `buy milk | *milk` is the text, whatever its case and punctuation."""
    return any(fnmatchcase(plain(text), plain(each, keep="*")) for each in pattern.split("|"))


def plain(text: str, keep: str = "") -> str:
    """Return the words of the text in small letters, without accents and punctuation."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(" " if not (each.isalnum() or each in keep) else each for each in letters if not _is_mark(each))
    return re.sub(r"\s+", " ", kept).strip()


def _is_mark(letter: str) -> bool:
    return unicodedata.combining(letter) != 0 or letter in "'\u2019"


def _wrong_additions(expected: Sequence[NewTask], new: list[dict[str, Any]], clock: Clock) -> list[Difference]:
    """Return each expected task that is not there, and each new one that was not expected."""
    pairs = _best_pairs(expected, new, clock)
    found = [
        Difference(f"{task.title!r} was not added as expected", False) for task in expected if id(task) not in pairs
    ]
    surplus = [task for at, task in enumerate(new) if at not in pairs.values()]
    return found + [Difference(f"{task['title']!r} was added (due {task['due']})", True) for task in surplus]


def _best_pairs(expected: Sequence[NewTask], new: list[dict[str, Any]], clock: Clock) -> dict[int, int]:
    """Pair as many expected tasks as possible with a new task each (augmenting paths)."""
    holder: dict[int, NewTask] = {}

    def place(task: NewTask, tried: set[int]) -> bool:
        for at, found in enumerate(new):
            if at in tried or not _is_like(task, found, clock):
                continue
            tried.add(at)
            if at not in holder or place(holder[at], tried):
                holder[at] = task
                return True
        return False

    for task in expected:
        place(task, set())
    return {id(task): at for at, task in holder.items()}


def _is_like(expected: NewTask, found: Mapping[str, Any], clock: Clock) -> bool:
    return (
        fits_text(expected.title, found["title"])
        and (expected.description is None or fits_text(expected.description, found["description"]))
        and _fits_due(expected.due, found["due"], clock)
        and expected.completed == found["completed"]
    )
