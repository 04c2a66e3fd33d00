"""The service, with the stand-in model, does what a new user's first sentences ask for, or says that it cannot."""

import re
from datetime import date, timedelta
from typing import Any, Final
from uuid import uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest

from chat.app import app
from dev.tokens import Issuer
from testing.callers import Caller
from tests.conftest import serving
from tests.streams import Client
from tests.tasks.first_sentences import ADDING, ASKING, CHANGING, DATES, REFERENCES, TALKING, Rows

Connection = psycopg.Connection[dict[str, Any]]
Task = dict[str, Any]

ZONE: Final = "Pacific/Kiritimati"  # 14 hours ahead: for most of the day, its date is not that of UTC
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

pytestmark = pytest.mark.parametrize("database_url", ["direct"], indirect=True)


class Newcomer:
    """A new user with three tasks, in a conversation of their own."""

    def __init__(self, url: str, issuer: Issuer, rows: Connection) -> None:
        """Store the tasks."""
        self.client, self.rows, self.conversation_id = Client(url, Caller(uuid4().hex, issuer)), rows, None
        insert = "insert into task (user_id, title, description, completed) values (%s, %s, '', %s)"
        for title in ("buy milk", "call mum", "write report"):
            rows.execute(insert, [self.client.caller.id, title, title == "write report"])

    def effect_of(self, message: str, expected: str) -> str:
        """Say the message. Return `expected` if that is its effect, else the effect that it has."""
        before = self._tasks()
        body = {"message": message, "conversation_id": self.conversation_id, "timezone": ZONE}
        with self.client.stream(body, accept="application/json") as answer:
            assert answer.status == 200, answer.json
            self.conversation_id = answer.json["conversation_id"]
        changes = list(_changes(before, self._tasks()))
        kind, _, text = expected.partition(" ")
        if kind in _ANSWERS:
            said = answer.json["response"]
            return expected if not changes and _ANSWERS[kind](said, text) else f"{changes} {said}"
        return expected if sorted(changes) == sorted(self._dated(expected)) else f"{changes} {answer.json['response']}"

    def _dated(self, expected: str) -> list[str]:
        """Return the expected changes, with dates in place of names of days."""
        query = "select max(created_at) as said_at from message where user_id = %s and role = 'user'"
        [said] = self.rows.execute(query, [self.client.caller.id]).fetchall()
        today = said["said_at"].astimezone(ZoneInfo(ZONE)).date()
        return [_DAY.sub(lambda found: f"{found[1]}{_day(found[2], today)}", change) for change in expected.split("; ")]

    def _tasks(self) -> dict[int, Task]:
        query = "select id, title, description, completed, due_on, due_at, due_zone from task where user_id = %s"
        return {row["id"]: row for row in self.rows.execute(query, [self.client.caller.id])}


_DAY: Final = re.compile(r"( @ |^date [^:]+: )(next \w+|[^ ]+)")
_DONE: Final = {True: "finish", False: "reopen"}
_TITLES: Final = re.compile(r"([\w ]+) \(\d+[,)]")


def _names_only(said: str, titles: str) -> bool:
    found = {title.split(" and ")[-1].strip() for title in _TITLES.findall(said)}
    return found == set(titles.split(", "))


_ANSWERS: Final = {
    "shows": _names_only,
    "says": lambda said, text: text in said,
    "asks": lambda said, _: said.endswith("?"),
    "stand-in": lambda said, _: "I am the stand-in for a real model" in said and "\n" not in said,
}


def _changes(before: dict[int, Task], after: dict[int, Task]) -> Any:
    """Yield each change, as a corpus names it."""
    yield from (f"delete {before[key]['title']}" for key in before.keys() - after.keys())
    for key, task in after.items():
        old = before.get(key)
        if old is None:
            yield f"add {task['title']}{_due(task) and f' @ {_due(task)}'}"
            old = task | {"completed": False}
        if old["completed"] != task["completed"]:
            yield f"{_DONE[task['completed']]} {old['title']}"
        if old["title"] != task["title"]:
            yield f"rename {old['title']}: {task['title']}"
        if old["description"] != task["description"]:
            yield f"note {old['title']}: {task['description']}"
        if _due(old) != _due(task):
            yield f"date {old['title']}: {_due(task) or 'none'}"


def _due(task: Task) -> str:
    if task["due_at"]:
        return f"{task['due_at'].astimezone(ZoneInfo(task['due_zone'])):%Y-%m-%d %H:%M}"
    return str(task["due_on"] or "")


def _day(name: str, today: date) -> str:
    days = {"today": today, "tomorrow": today + timedelta(1), "none": "none"}
    days |= {
        weekday: today + timedelta((index - today.weekday() - 1) % 7 + 1) for index, weekday in enumerate(WEEKDAYS)
    }
    monday = today + timedelta(7 - today.weekday())
    days |= {f"next {weekday}": monday + timedelta(index) for index, weekday in enumerate(WEEKDAYS)}
    if name.startswith("+"):
        return str(today + timedelta(int(name)))
    if re.fullmatch(r"\d\d-\d\d", name):
        return f"{today.year + (f'{today:%m-%d}' > name)}-{name}"
    return str(days.get(name, name))


@pytest.mark.parametrize("sentences", [ADDING, DATES, CHANGING, REFERENCES, ASKING, TALKING])
def test_a_new_user_is_understood(sentences: Rows, environment: None, issuer: Issuer, rows: Connection) -> None:
    """Each message has its effect and no other, from the entry point to the rows."""
    wrong = []
    with serving(app) as url:
        for row in sentences:
            newcomer = Newcomer(url, issuer, rows)
            for message, expected in zip(row[::2], row[1::2], strict=True):
                if (effect := newcomer.effect_of(message, expected)) != expected:
                    wrong.append(f"{message[:80]!r}: {expected} != {effect}")
    assert not wrong, "\n".join([f"{len(wrong)} of {sum(map(len, sentences)) // 2}", *wrong])
