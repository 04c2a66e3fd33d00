"""Describe tasks for the engine's tests: the text is the title, and a task changes when it is completed."""

from typing import Final

from taskchat.tasks import toolset
from tests.example_domain import ABSENT, Call, ExampleDomain, Sentence


class Tasks(ExampleDomain):
    """Holds the sentences of docs/stand-in-model.md and their effects."""

    toolset = toolset
    table, text, state = "task", "title", "completed"
    states = (False, True)
    required = {"description": ""}  # noqa: RUF012  (no code writes to it)
    expiring = (
        "insert into task (user_id, title, description, completed, updated_at)"
        " select %(user)s, 'milk', '', true, %(at)s from generate_series(1, %(count)s)",
        "task_finished_idx",
    )
    page = "tasks"
    id_argument = "task_id"
    absent = f"Task {ABSENT} was not found."
    add_tool, list_tool, delete_tool = "add_task", "list_tasks", "delete_task"
    change_tool, rename_tool = "complete_task", "update_task"

    def add(self, *texts: str) -> Sentence:
        """Add tasks."""
        return Sentence(f"Add {' and '.join(texts)}", ["add_task"] * len(texts), [f"insert {text}" for text in texts])

    def show(self) -> Sentence:
        """List the pending tasks."""
        return Sentence("What is left?", ["list_tasks"])

    def change(self, text: str) -> Sentence:
        """Complete a task."""
        return Sentence(f"Finish {text}", [*self.lookup(text), "complete_task"], [f"update {text}"])

    def rename(self, text: str, new: str) -> Sentence:
        """Give a task another title."""
        return Sentence(f"Rename {text} to {new}", [*self.lookup(text), "update_task"], [f"update {new}"])

    def delete(self, text: str) -> Sentence:
        """Delete a task."""
        return Sentence(f"Delete {text}", [*self.lookup(text), "delete_task"], [f"delete {text}"])

    def fail(self) -> Sentence:
        """Complete a task that is not there."""
        return Sentence(f"Finish {ABSENT}", ["complete_task"])

    def call_add(self, text: str) -> Call:
        """Call add_task."""
        return {"name": "add_task", "arguments": {"title": text}}

    def call_change(self, thing: int) -> Call:
        """Call complete_task."""
        return {"name": "complete_task", "arguments": {"task_id": thing}}


example: Final = Tasks()
