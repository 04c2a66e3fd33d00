"""The task queries. One statement each, the owner in every one of them."""

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Delete, Update, and_, func
from sqlmodel import Session, delete, insert, select, update

from taskchat.errors import ToolFailure
from taskchat.models import Task

PAGE_SIZE: Final = 50
"""Tasks on one page: what a model can read at once without losing its thread."""

Status = Literal["all", "pending", "completed"]


class TaskView(BaseModel):
    """A task as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    title: str
    description: str
    completed: bool
    created_at: datetime
    updated_at: datetime


class TaskPage(BaseModel):
    """Tasks in order of id. `next_cursor` asks for the page after this one, or is null on the last."""

    tasks: list[TaskView]
    next_cursor: int | None


class TaskNotFound(ToolFailure):
    """Raised when the id is not one of the caller's tasks, whoever else's it may be."""

    def __init__(self, task_id: int) -> None:
        super().__init__(f"Task {task_id} was not found.")


def add(session: Session, user_id: str, title: str, description: str) -> TaskView:
    """Store a new task."""
    statement = insert(Task).values(user_id=user_id, title=title, description=description).returning(Task)
    return TaskView.model_validate(session.scalars(statement).one())


def page(session: Session, user_id: str, status: Status, cursor: int | None) -> TaskPage:
    """One page of tasks whose ids come after `cursor`."""
    statement = select(Task).where(Task.user_id == user_id).order_by(Task.id).limit(PAGE_SIZE + 1)  # type: ignore[arg-type]
    if status != "all":
        statement = statement.where(Task.completed == (status == "completed"))
    if cursor is not None:
        statement = statement.where(Task.id > cursor)  # type: ignore[operator]
    tasks = [TaskView.model_validate(task) for task in session.scalars(statement)]
    more = len(tasks) > PAGE_SIZE
    return TaskPage(tasks=tasks[:PAGE_SIZE], next_cursor=tasks[PAGE_SIZE - 1].id if more else None)


def change(session: Session, user_id: str, task_id: int, **values: Any) -> TaskView:
    """Set the given columns. Raises TaskNotFound."""
    return _one(session, user_id, task_id, update(Task).values(**values, updated_at=func.clock_timestamp()))


def remove(session: Session, user_id: str, task_id: int) -> TaskView:
    """Delete a task and give it back one last time. Raises TaskNotFound."""
    return _one(session, user_id, task_id, delete(Task))


def _one(session: Session, user_id: str, task_id: int, statement: Update | Delete) -> TaskView:
    owned = and_(Task.user_id == user_id, Task.id == task_id)  # type: ignore[arg-type]
    task = session.scalars(statement.where(owned).returning(Task)).one_or_none()
    if task is None:
        raise TaskNotFound(task_id)
    return TaskView.model_validate(task)
