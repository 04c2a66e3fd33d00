"""Describe a domain as the engine's tests need it: sentences, tool calls, and the rows that come of them.

The engine's tests know of a domain only this: it keeps things in one table; each thing has a text that the caller chose
and a state; tools add, list, change, rename and delete one thing. `tests/domain.py` names the domain in use.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, LiteralString

import psycopg
from psycopg import sql

from taskchat.toolcalls.toolset import Toolset

Rows = psycopg.Connection[dict[str, Any]]
"""Connection of Postgres's superuser."""
Call = dict[str, Any]
"""A tool call as the stand-in model takes it: `{"name": …, "arguments": …}`."""
Row = tuple[str, Any]
"""Text and state of a thing, as they lie in Postgres."""

ABSENT: Final = 987_654_321
"""The id of no row."""


class Sentence(str):
    """A message that the stand-in model understands. It is a string that also holds its calls and its effects."""

    tools: list[str]
    """The tools that are called, in their order."""
    effects: list[str]
    """Changes in Postgres, in their order: `insert milk`, `update milk`, `delete milk`."""

    def __new__(cls, text: str, tools: Sequence[str] = (), effects: Sequence[str] = ()) -> "Sentence":
        """Make a message that has these calls and effects."""
        sentence = super().__new__(cls, text)
        sentence.tools, sentence.effects = list(tools), list(effects)
        return sentence

    def then(self, other: "Sentence") -> "Sentence":
        """Return one message that asks for both. Only the last part may be `change`, `rename`, `delete` or `show`."""
        text = f"{self}, then {other[0].lower()}{other[1:]}"
        return Sentence(text, self.tools + other.tools, self.effects + other.effects)


class ExampleDomain(ABC):
    """A domain as the engine's tests use it. A text is one or two plain words, such as "buy milk".

    `change`, `rename` and `delete` take the id of a thing in place of its text, and then list nothing.
    """

    toolset: ClassVar[Toolset]
    """The domain itself, as both functions take it."""
    table: ClassVar[str]
    text: ClassVar[str]
    """The column of the text. The tools' argument and the field of their results have this name too."""
    state: ClassVar[str]
    """The column of the state."""
    states: ClassVar[tuple[Any, Any]]
    """The state of a new thing, and the state after `change`."""
    required: ClassVar[Mapping[str, Any]]
    """Values of the other columns that a row must have."""
    expiring: ClassVar[tuple[str, str] | None] = None
    """If retention deletes old things that `change` has changed: the statement that stores some, and their index."""
    page: ClassVar[str]
    """The field in which the list tool's result holds the things."""
    id_argument: ClassVar[str]
    """The tools' argument that names a thing."""
    absent: ClassVar[str]
    """The error of a call for ABSENT."""

    add_tool: ClassVar[str]
    list_tool: ClassVar[str]
    change_tool: ClassVar[str]
    rename_tool: ClassVar[str]
    """It changes the text. It may be the same tool as `change_tool`."""
    delete_tool: ClassVar[str]
    """It is one of the toolset's destructive tools."""

    # Sentences

    @abstractmethod
    def add(self, *texts: str) -> Sentence:
        """Return a message that adds a thing for each text: one call of `add_tool` each."""

    @abstractmethod
    def show(self) -> Sentence:
        """Return a message that lists the new things: one call of `list_tool`."""

    @abstractmethod
    def change(self, text: str) -> Sentence:
        """Return a message that changes the thing's state: a call of `list_tool`, then one of `change_tool`."""

    @abstractmethod
    def rename(self, text: str, new: str) -> Sentence:
        """Return a message that changes the thing's text: a call of `list_tool`, then one of `rename_tool`."""

    @abstractmethod
    def delete(self, text: str) -> Sentence:
        """Return a message that deletes the thing: a call of `list_tool`, then one of `delete_tool`."""

    @abstractmethod
    def fail(self) -> Sentence:
        """Return a message whose one call of `change_tool` fails, with the error `absent`."""

    def lookup(self, text: str) -> list[str]:
        """Return the tools that the stand-in calls to find the thing with this text or id."""
        return [] if text.isdecimal() else [self.list_tool]

    # Tool calls

    @abstractmethod
    def call_add(self, text: str) -> Call:
        """Return the call that `add` makes."""

    @abstractmethod
    def call_change(self, thing: int) -> Call:
        """Return the call that changes the state of the thing with this id."""

    def call_list(self) -> Call:
        """Return a call that lists everything."""
        return {"name": self.list_tool, "arguments": {}}

    def call_rename(self, thing: int, text: str) -> Call:
        """Return the call that changes the text of the thing with this id."""
        return {"name": self.rename_tool, "arguments": {self.id_argument: thing, self.text: text}}

    def call_delete(self, thing: int) -> Call:
        """Return the call that deletes the thing with this id."""
        return {"name": self.delete_tool, "arguments": {self.id_argument: thing}}

    # Rows

    def row(self, text: str, *, changed: bool = False) -> Row:
        """Return what `rows_of` returns for a new thing, or for one that `change` has changed."""
        return text, self.states[changed]

    def rows_of(self, rows: Rows, user_id: str) -> list[Row]:
        """Return text and state of the user's things in Postgres, in order of id."""
        found = rows.execute(
            self.compose("select {text}, {state} from {table} where user_id = %s order by id"), [user_id]
        )
        return [(row[self.text], row[self.state]) for row in found]

    def ids_of(self, rows: Rows, user_id: str) -> list[int]:
        """Return the ids of the user's things."""
        found = rows.execute(self.compose("select id from {table} where user_id = %s order by id"), [user_id])
        return [row["id"] for row in found]

    @property
    def insert(self) -> str:
        """Return the statement that stores a new thing. Its parameters are the user's id and the text."""
        values = {self.state: self.states[0], **self.required}
        columns = sql.SQL(", ").join(map(sql.Identifier, ["user_id", self.text, *values]))
        literals = sql.SQL(", ").join(map(sql.Literal, values.values()))
        insert = sql.SQL("insert into {} ({}) values (%s, %s, {})")
        return insert.format(sql.Identifier(self.table), columns, literals).as_string()

    def put(self, rows: Rows, user_id: str, *texts: str) -> list[int]:
        """Write a new thing for each text without a turn, and return their ids."""
        statement = f"{self.insert} returning id".encode()
        return [rows.execute(statement, [user_id, text]).fetchall()[0]["id"] for text in texts]

    def listed(self, result: Mapping[str, Any]) -> list[str]:
        """Return the texts in a result of the list tool."""
        return [thing[self.text] for thing in result[self.page]]

    def compose(self, statement: LiteralString) -> sql.Composed:
        """Return the statement with the names of table and columns in their places."""
        names = {"table": self.table, "text": self.text, "state": self.state}
        return sql.SQL(statement).format(**{name: sql.Identifier(value) for name, value in names.items()})
