"""The task queries. One statement each, the owner in every one of them."""

from datetime import datetime
from itertools import accumulate
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict
from sqlalchemy import Executable, and_, bindparam, delete, func, insert, select, update
from sqlmodel import Session

from taskchat.errors import ToolFailure
from taskchat.invisible import visible
from taskchat.tasks.models import TASK

PAGE_SIZE: Final = 50
"""Tasks on one page: what a model can read at once without losing its thread."""

PAGE_CHARACTERS: Final = 16_000
"""Of JSON on one page: fifty usual tasks take 10,000, and the longest task there can be alone 14,000."""

Status = Literal["all", "pending", "completed"]

_Shown = Annotated[str, AfterValidator(visible)]
"""Text of a row that may have been written before the tools left out what is invisible."""


class TaskView(BaseModel):
    """A task as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    title: _Shown
    description: _Shown
    completed: bool
    created_at: datetime
    updated_at: datetime


class TaskPage(BaseModel):
    """Tasks in order of id. `next_cursor` asks for the page after this one, or is null on the last."""

    tasks: list[TaskView]
    next_cursor: int | None


# Values come in as parameters, never inside a statement: SQLAlchemy keeps each statement it has compiled, and with it
# what the first person to use it said.
_OWNED: Final = TASK.c.user_id == bindparam("of_user")
_THIS: Final = and_(_OWNED, TASK.c.id == bindparam("of_id"))
_INSERT: Final = insert(TASK).returning(TASK)
_PAGE: Final = select(TASK).where(_OWNED, TASK.c.id > bindparam("after")).order_by(TASK.c.id).limit(PAGE_SIZE + 1)
_PAGE_BY_STATE: Final = _PAGE.where(TASK.c.completed == bindparam("is_completed"))
_UPDATE: Final = update(TASK).where(_THIS).values(updated_at=func.clock_timestamp()).returning(TASK)
_DELETE: Final = delete(TASK).where(_THIS).returning(TASK)


class TaskNotFound(ToolFailure):
    """Raised when the id is not one of the caller's tasks, whoever else's it may be."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"Task {task_id} was not found.")


def add(session: Session, user_id: str, title: str, description: str) -> TaskView:
    """Store a new task."""
    task = session.execute(_INSERT, {"user_id": user_id, "title": title, "description": description}).one()
    return TaskView.model_validate(task)


def page(session: Session, user_id: str, status: Status, cursor: int | None) -> TaskPage:
    """One page of tasks whose ids come after `cursor`."""
    wanted = {"of_user": user_id, "after": cursor or 0, "is_completed": status == "completed"}
    found = session.execute(_PAGE if status == "all" else _PAGE_BY_STATE, wanted)
    tasks = [TaskView.model_validate(task) for task in found]
    shown = _fitting(tasks[:PAGE_SIZE])
    return TaskPage(tasks=shown, next_cursor=shown[-1].id if len(shown) < len(tasks) else None)


def _fitting(tasks: list[TaskView]) -> list[TaskView]:
    """The first tasks that have room on one page; one always has, or the list would not go on."""
    ends = accumulate(_length(task) for task in tasks)
    return [task for task, end in zip(tasks, ends, strict=True) if end <= PAGE_CHARACTERS] or tasks[:1]


def _length(task: TaskView) -> int:
    """Characters of the task as a model reads it: in JSON, where `<` is spelled with six."""
    text = task.model_dump_json()
    return len(text) + 5 * text.count("<")


def change(session: Session, user_id: str, task_id: int, **values: Any) -> TaskView:
    """Set the given columns. Raises TaskNotFound."""
    columns: dict[str, Any] = {name: bindparam(f"new_{name}") for name in values}
    given = {f"new_{name}": value for name, value in values.items()}
    return _one(session, user_id, task_id, _UPDATE.values(columns), given)


def remove(session: Session, user_id: str, task_id: int) -> TaskView:
    """Delete a task and give it back one last time. Raises TaskNotFound."""
    return _one(session, user_id, task_id, _DELETE, {})


def _one(session: Session, user_id: str, task_id: int, statement: Executable, values: dict[str, Any]) -> TaskView:
    task = session.execute(statement, {"of_user": user_id, "of_id": task_id, **values}).one_or_none()
    if task is None:
        raise TaskNotFound(task_id)
    return TaskView.model_validate(task)
