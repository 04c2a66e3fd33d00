"""Read and write tasks, in one statement each. Every statement names the owner."""

from datetime import datetime
from itertools import accumulate
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict
from sqlalchemy import Executable, and_, bindparam, delete, func, insert, select, update
from sqlmodel import Session

from taskchat.errors import ToolFailure
from taskchat.invisible import remove_invisible
from taskchat.tasks.models import TASK

PAGE_SIZE: Final = 50
"""Tasks on one page. A model reads so many without mistakes."""

PAGE_CHARACTERS: Final = 16_000
"""Characters of JSON on one page. Fifty usual tasks take 10,000; the longest possible task takes 14,000."""

Status = Literal["all", "pending", "completed"]

_VisibleText = Annotated[str, AfterValidator(remove_invisible)]
"""Text of a row. Rows that an early version wrote may hold invisible characters."""


class TaskView(BaseModel):
    """A task, as a tool returns it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    title: _VisibleText
    description: _VisibleText
    completed: bool
    created_at: datetime
    updated_at: datetime


class TaskPage(BaseModel):
    """Tasks in order of id. `next_cursor` asks for the next page, and is null on the last one."""

    tasks: list[TaskView]
    next_cursor: int | None


# Values are parameters: SQLAlchemy keeps each statement that it has compiled, and with it each value inside.
_OF_OWNER: Final = TASK.c.user_id == bindparam("of_user")
_ONE_TASK: Final = and_(_OF_OWNER, TASK.c.id == bindparam("of_id"))
_INSERT: Final = insert(TASK).returning(TASK)
_PAGE: Final = select(TASK).where(_OF_OWNER, TASK.c.id > bindparam("after")).order_by(TASK.c.id).limit(PAGE_SIZE + 1)
_PAGE_BY_STATE: Final = _PAGE.where(TASK.c.completed == bindparam("is_completed"))
_UPDATE: Final = update(TASK).where(_ONE_TASK).values(updated_at=func.clock_timestamp()).returning(TASK)
_DELETE: Final = delete(TASK).where(_ONE_TASK).returning(TASK)


class TaskNotFound(ToolFailure):
    """Raised when the caller has no task with this id. Another person may have one."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"Task {task_id} was not found.")


def add(session: Session, user_id: str, title: str, description: str) -> TaskView:
    task = session.execute(_INSERT, {"user_id": user_id, "title": title, "description": description}).one()
    return TaskView.model_validate(task)


def read_page(session: Session, user_id: str, status: Status, cursor: int | None) -> TaskPage:
    """Return the first tasks whose ids come after `cursor`."""
    wanted = {"of_user": user_id, "after": cursor or 0, "is_completed": status == "completed"}
    found = session.execute(_PAGE if status == "all" else _PAGE_BY_STATE, wanted)
    tasks = [TaskView.model_validate(task) for task in found]
    ends = accumulate(_count_characters(task) for task in tasks)
    fitting = [task for task, end in zip(tasks[:PAGE_SIZE], ends, strict=False) if end <= PAGE_CHARACTERS]
    on_page = fitting or tasks[:1]  # at least one, or the next page would never come
    return TaskPage(tasks=on_page, next_cursor=on_page[-1].id if len(on_page) < len(tasks) else None)


def _count_characters(task: TaskView) -> int:
    """Return the length of the task as a model reads it: in JSON, where `<` takes six characters."""
    text = task.model_dump_json()
    return len(text) + 5 * text.count("<")


def change(session: Session, user_id: str, task_id: int, **values: Any) -> TaskView:
    """Set the given columns, and return the task. Raises TaskNotFound."""
    columns: dict[str, Any] = {name: bindparam(f"new_{name}") for name in values}
    parameters = {f"new_{name}": value for name, value in values.items()}
    return _execute(session, _UPDATE.values(columns), user_id, task_id, parameters)


def remove(session: Session, user_id: str, task_id: int) -> TaskView:
    """Delete a task, and return it. Raises TaskNotFound."""
    return _execute(session, _DELETE, user_id, task_id, {})


def _execute(session: Session, statement: Executable, user_id: str, task_id: int, values: dict[str, Any]) -> TaskView:
    task = session.execute(statement, {"of_user": user_id, "of_id": task_id, **values}).one_or_none()
    if task is None:
        raise TaskNotFound(task_id)
    return TaskView.model_validate(task)
