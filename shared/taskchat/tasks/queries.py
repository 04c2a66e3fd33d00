"""Read and write tasks, in one statement each. Every statement names the owner."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import accumulate
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel
from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    Executable,
    RowMapping,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlmodel import Session

from taskchat import cursor
from taskchat.database.types import Timestamp
from taskchat.errors import ToolFailure
from taskchat.invisible import remove_invisible
from taskchat.tasks.due import Due, Window
from taskchat.tasks.models import DUE_AT, DUE_ON, TASK

PAGE_SIZE: Final = 50
"""Tasks on one page. A model reads so many without mistakes."""

PAGE_CHARACTERS: Final = 16_000
"""Characters of JSON on one page. Fifty usual tasks take 10,000; the longest possible task takes 14,000."""

MAX_ID: Final = 2**63 - 1  # bigint

_BEFORE: Final = "before_"

Status = Literal["all", "pending", "completed"]

_VisibleText = Annotated[str, AfterValidator(remove_invisible)]
"""Text of a row. Rows that an early version wrote may hold invisible characters."""


class TaskView(BaseModel):
    """A task, as a tool returns it."""

    id: int
    title: _VisibleText
    description: _VisibleText
    completed: bool
    due: str | None
    """A day, or an instant in its zone. `Due.parse` reads it back."""
    weekday: str | None
    created_at: datetime
    updated_at: datetime


class ChangedTask(TaskView):
    """A task that a call changed or deleted."""

    before: TaskView
    """The task as the call found it: a later call can put it back."""


class TaskPage(BaseModel):
    """Tasks in order of their dates. `next_cursor` asks for the next page, and is null on the last one."""

    tasks: list[TaskView]
    next_cursor: str | None


class Place(NamedTuple):
    """The place in a list behind which a page begins: the values of the index, as Postgres reads them."""

    after_on: str = "-infinity"
    after_at: str = "-infinity"
    after_id: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Return the place in a cursor, or the beginning. Raises BadCursor."""
        if text is None:
            return cls()
        parse = partial(Due.parse, zone="UTC")
        day, instant, task_id = cursor.read(text, parse, parse, _parse_id)
        if task_id is None:
            raise cursor.BadCursor
        return cls(
            str(day.on) if day else "infinity", str(instant.at) if instant and instant.at else cls().after_at, task_id
        )


# Values are parameters: SQLAlchemy keeps each statement that it has compiled, and with it each value inside.
_OF_OWNER: Final = TASK.c.user_id == bindparam("of_user")
_ONE_TASK: Final = and_(_OF_OWNER, TASK.c.id == bindparam("of_id"))
_INSERT: Final = insert(TASK).returning(TASK)

_PLACE: Final = (DUE_ON, DUE_AT, TASK.c.id)
_AFTER: Final = (
    cast(bindparam("after_on", type_=Text), Date),
    cast(bindparam("after_at", type_=Text), Timestamp),
    bindparam("after_id", type_=BigInteger),
)
_STATE: Final = bindparam("is_completed", type_=Boolean)
_FIRST: Final = select(TASK).where(_OF_OWNER).order_by(*_PLACE).limit(bindparam("most"))
_PAGE: Final = _FIRST.where(tuple_(*_PLACE) > tuple_(*_AFTER))
# The state is a part of the place, so that only the index with the state leads to it. Postgres guesses that few tasks
# come after one without a date, and would read all of them to find those of a state.
_PAGE_BY_STATE: Final = _FIRST.where(
    TASK.c.completed == _STATE, tuple_(TASK.c.completed, *_PLACE) > tuple_(_STATE, *_AFTER)
)
_IN_WINDOW: Final = and_(
    DUE_ON.between(bindparam("earliest"), bindparam("latest")),  # so that the index leads to the rows
    or_(
        and_(TASK.c.due_at.is_(None), TASK.c.due_on.between(bindparam("first"), bindparam("last"))),
        and_(TASK.c.due_at >= bindparam("begin"), TASK.c.due_at < bindparam("end")),
    ),
)
_PAGE_IN_WINDOW: Final = _PAGE.where(_IN_WINDOW)
_PAGE_IN_WINDOW_BY_STATE: Final = _PAGE_BY_STATE.where(_IN_WINDOW)
_PAGES: Final = {
    (False, False): _PAGE,
    (True, False): _PAGE_BY_STATE,
    (False, True): _PAGE_IN_WINDOW,
    (True, True): _PAGE_IN_WINDOW_BY_STATE,
}
"""The statement of a page: with a state or without, in a window or not."""

# Postgres waits for the row's lock before it reads `old`. So `old` is what the change before this one has left.
_OLD: Final = select(TASK).where(_ONE_TASK).with_for_update().subquery("old")
_UPDATE: Final = (
    update(TASK)
    .where(_ONE_TASK, TASK.c.id == _OLD.c.id)
    .values(updated_at=func.clock_timestamp())
    .returning(TASK, *(column.label(f"{_BEFORE}{column.name}") for column in _OLD.c))
)
_DELETE: Final = delete(TASK).where(_ONE_TASK).returning(TASK)


class TaskNotFound(ToolFailure):
    """Raised when the caller has no task with this id. Another person may have one."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"Task {task_id} was not found.")


def add(session: Session, user_id: str, title: str, description: str, due: Due | None) -> TaskView:
    values = {"user_id": user_id, "title": title, "description": description, **columns_of(due)}
    return _view(session.execute(_INSERT, values).mappings().one())


def columns_of(due: Due | None) -> dict[str, Any]:
    """Return the columns that hold when a task is due, with their values."""
    return {"due_on": due and due.on, "due_at": due and due.at, "due_zone": due and due.zone}


def read_page(
    session: Session, user_id: str, status: Status, window: Window | None, after: Place, most: int = PAGE_SIZE
) -> TaskPage:
    """Return the first tasks behind a place, `most` at most. A page stays exact while tasks change."""
    if window and window.is_overdue:
        if status == "completed":
            return TaskPage(tasks=[], next_cursor=None)
        status = "pending"
    statement = _PAGES[status != "all", window is not None]
    values = {"of_user": user_id, "is_completed": status == "completed", "most": most + 1, **after._asdict()}
    rows = session.execute(statement, values | _values_of(window)).mappings().all()
    return _fit(rows, most)


def _fit(rows: Sequence[RowMapping], most: int) -> TaskPage:
    """Return a page of the first rows, as many as fit. It has at least one, or the next page would never come."""
    tasks = [_view(row) for row in rows]
    ends = accumulate(_count_characters(task) for task in tasks)
    fitting = [task for task, end in zip(tasks[:most], ends, strict=False) if end <= PAGE_CHARACTERS]
    on_page = fitting or tasks[:1]
    is_last = len(on_page) == len(tasks)
    return TaskPage(tasks=on_page, next_cursor=None if is_last else _write_cursor(rows[len(on_page) - 1]))


def _write_cursor(row: RowMapping) -> str:
    on, at = row["due_on"], row["due_at"]
    return cursor.write(on and on.isoformat(), at and at.isoformat(), row["id"])


def _parse_id(value: Any) -> int:
    """Return the id in a cursor. Raises ValueError for another value."""
    if type(value) is not int or not 1 <= value <= MAX_ID:
        raise ValueError("not an id")
    return value


def _values_of(window: Window | None) -> dict[str, Any]:
    if window is None:
        return {}
    return {name: getattr(window, name) for name in ("earliest", "latest", "first", "last", "begin", "end")}


def _count_characters(task: TaskView) -> int:
    """Return the length of the task as a model reads it: in JSON, where `<` takes six characters."""
    text = task.model_dump_json()
    return len(text) + 5 * text.count("<")


def change(session: Session, user_id: str, task_id: int, **values: Any) -> ChangedTask:
    """Set the given columns, and return the task. Raises TaskNotFound."""
    columns: dict[str, Any] = {name: bindparam(f"new_{name}") for name in values}
    parameters = {f"new_{name}": value for name, value in values.items()}
    task = _execute(session, _UPDATE.values(columns), user_id, task_id, parameters)
    before = {name.removeprefix(_BEFORE): value for name, value in task.items() if name.startswith(_BEFORE)}
    return _with_before(task, before)


def remove(session: Session, user_id: str, task_id: int) -> ChangedTask:
    """Delete a task, and return it. Raises TaskNotFound."""
    task = _execute(session, _DELETE, user_id, task_id, {})
    return _with_before(task, task)


def _execute(session: Session, statement: Executable, user_id: str, task_id: int, values: dict[str, Any]) -> RowMapping:
    task = session.execute(statement, {"of_user": user_id, "of_id": task_id, **values}).mappings().one_or_none()
    if task is None:
        raise TaskNotFound(task_id)
    return task


def _view(task: Mapping[Any, Any]) -> TaskView:
    return TaskView.model_validate(_show(task))


def _with_before(task: Mapping[Any, Any], before: Mapping[Any, Any]) -> ChangedTask:
    return ChangedTask.model_validate(_show(task) | {"before": _view(before)})


def _show(task: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the row with its date as a tool shows it."""
    due = Due(task["due_on"], task["due_at"], task["due_zone"]) if task["due_on"] else None
    return {**task, "due": due and str(due), "weekday": due and due.weekday}
