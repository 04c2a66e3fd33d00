"""The tools keep, show, filter and sort dates, and say how a task was, so that a change can be undone."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from dev.postgres import Postgres
from tests.conftest import run
from tests.example_domain import Rows
from tests.tool_calls import Outcome, acall

pytestmark = pytest.mark.usefixtures("environment")

FRIDAY = datetime(2026, 12, 4, 12, tzinfo=UTC)
Say = Callable[..., Outcome]


@pytest.fixture
def user_id() -> str:
    """Give the id of a user without tasks."""
    return uuid4().hex


@pytest.fixture
def say(user_id: str) -> Say:
    """Give a function that calls a tool in a turn of that user, in a time zone."""

    def call(name: str, zone: str = "Europe/Paris", said_at: datetime = FRIDAY, **arguments: Any) -> Outcome:
        return run(acall(user_id, name, arguments, said_at=said_at, timezone=zone))

    return call


def titles(say: Say, **arguments: Any) -> list[str]:
    """Return the titles on the first page of a list."""
    return [task["title"] for task in say("list_tasks", **arguments).content["tasks"]]


def row(rows: Rows, task_id: int) -> tuple[Any, ...]:
    """Return when a task is due, as the table holds it."""
    found = rows.execute("select due_on, due_at, due_zone from task where id = %s", [task_id]).fetchone()
    assert found
    return (
        found["due_on"].isoformat(),
        found["due_at"] and found["due_at"].astimezone(UTC).isoformat(),
        found["due_zone"],
    )


def test_a_row_keeps_what_was_meant(say: Say, rows: Rows) -> None:
    """A day has no zone. Nine o'clock is nine before and after the clocks change, and keeps its zone."""
    day, before, after = (
        say("add_task", title="a", due=due).content for due in ("2027-03-27", "2027-03-27T09:00", "2027-03-28T09:00")
    )
    assert row(rows, day["id"]) == ("2027-03-27", None, None)
    assert row(rows, before["id"]) == ("2027-03-27", "2027-03-27T08:00:00+00:00", "Europe/Paris")
    assert row(rows, after["id"]) == ("2027-03-28", "2027-03-28T07:00:00+00:00", "Europe/Paris")
    assert [task["weekday"] for task in (day, before, after)] == ["Saturday", "Saturday", "Sunday"]
    assert after["due"] == "2027-03-28T09:00+02:00[Europe/Paris]"


def test_a_person_travels_between_two_messages(say: Say) -> None:
    """In Tokyo, a day is the same day. An instant is the same instant, in the zone in which it was meant."""
    say("add_task", title="day", due="2026-12-05")
    say("add_task", title="instant", due="2026-12-05T23:00")
    tasks = say("list_tasks", "Asia/Tokyo").content["tasks"]
    assert [task["due"] for task in tasks] == ["2026-12-05", "2026-12-05T23:00+01:00[Europe/Paris]"]
    assert titles(say, due="2026-12-05") == ["day", "instant"]
    assert titles(say, zone="Asia/Tokyo", due="2026-12-05") == ["day"]
    assert titles(say, zone="Asia/Tokyo", due="2026-12-06") == ["instant"]


def test_overdue_is_what_has_passed(say: Say) -> None:
    """A day passes at its end for the person. A completed task is not overdue."""
    for due in ("2026-12-03", "2026-12-04", "2026-12-04T12:59", "2026-12-04T13:01"):
        say("add_task", title=due, due=due)
    say("complete_task", task_id=say("add_task", title="done", due="2026-12-01").content["id"])
    say("add_task", title="never")
    assert titles(say, due="overdue") == ["2026-12-03", "2026-12-04T12:59"]
    assert titles(say, due="overdue", zone="Pacific/Kiritimati") == ["2026-12-03", "2026-12-04", "2026-12-04T12:59"]
    assert titles(say, due="overdue", status="completed") == []
    assert titles(say, due="today") == ["2026-12-04", "2026-12-04T12:59", "2026-12-04T13:01"]
    assert titles(say, due="../..", status="completed") == ["done"]


def test_the_list_is_sorted_by_date_and_id(say: Say) -> None:
    """Of one day, tasks without a time come first. Tasks without a date come last."""
    for due in (None, "2026-12-05T08:00", "2026-12-05", "9999-12-31", "2026-12-05T07:00", "2026-12-05", "0001-01-01"):
        say("add_task", title=str(due), due=due)
    dates = ["0001-01-01", "2026-12-05", "2026-12-05", "2026-12-05T07:00", "2026-12-05T08:00", "9999-12-31", "None"]
    assert titles(say) == dates
    ids = [task["id"] for task in say("list_tasks", due="2026-12-05").content["tasks"]]
    assert ids[:2] == sorted(ids[:2])


def walk(say: Say, change: Callable[[int], Any], **arguments: Any) -> list[int]:
    """Read all pages of a list, and call `change` between them. Return the ids."""
    found: list[int] = []
    cursor, pages = None, 0
    while pages == 0 or cursor:
        page = say("list_tasks", cursor=cursor, **arguments).content
        found += [task["id"] for task in page["tasks"]]
        cursor, pages = page["next_cursor"], pages + 1
        change(pages)
    return found


@pytest.mark.parametrize("arguments", [{}, {"status": "pending"}, {"due": "2026-01-01/.."}], ids=str)
def test_pages_stay_exact_while_tasks_change(
    say: Say, user_id: str, rows: Rows, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    """Each task that does not change is on one page, though others are added, moved, completed and deleted."""
    rows.execute(
        "insert into task (user_id, title, description, due_on) select %s, 'n', '', "
        " date '2026-12-01' + n %% 9 from generate_series(1, 200) n",
        [user_id],
    )
    rows.execute(
        "insert into task (user_id, title, description) select %s, 'n', '' from generate_series(1, 60)", [user_id]
    )
    ids = [found["id"] for found in rows.execute("select id from task where user_id = %s order by id", [user_id])]
    changed = ids[::4]

    def change(page: int) -> None:
        for task_id in changed[page * 6 : page * 6 + 6 : 3]:
            say("update_task", task_id=task_id, due="2026-12-01" if page % 2 else "2027-01-01")
            say("add_task", title="new", due="2026-12-03")
        say("delete_task", task_id=changed[page * 6 + 1])
        say("complete_task", task_id=changed[page * 6 + 2])

    found = walk(say, change, **arguments)
    dated = set(ids[:200]) if "due" in arguments else set(ids)
    still = sorted(dated - set(changed))
    assert [task_id for task_id in sorted(found) if task_id in set(still)] == still


def test_what_left_out_stays_and_none_clears(say: Say) -> None:
    """A change of the title keeps the date, and a cleared date takes the weekday along."""
    task_id = say("add_task", title="a", due="2026-12-05").content["id"]
    assert say("update_task", task_id=task_id, title="b").content["due"] == "2026-12-05"
    cleared = say("update_task", task_id=task_id, due="none").content
    assert (cleared["title"], cleared["due"], cleared["weekday"]) == ("b", None, None)


def restorable(task: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a person sees as the task's state."""
    return {name: task[name] for name in ("title", "description", "completed", "due", "weekday")}


def test_a_change_can_be_undone_from_its_result(say: Say, rows: Rows) -> None:
    """`before` is the task as it was, in the result and in the record. It has no own `before`."""
    task = say("add_task", title="a", description="b", due="2026-12-05T09:00").content
    outcome = say("update_task", "Asia/Tokyo", task_id=task["id"], title="c", due="none", completed=True)
    changed = outcome.content
    assert changed["before"] == task
    kept = rows.execute("select result from tool_call where call_id = %s", [outcome.record.call_id]).fetchone()
    assert kept == {"result": changed}
    fields = {name: task[name] for name in ("title", "description", "completed", "due")}
    undone = say("update_task", "Asia/Tokyo", task_id=task["id"], **fields).content
    assert restorable(undone) == restorable(task)
    assert restorable(undone["before"]) == restorable(changed)


def test_a_deleted_task_can_be_made_again(say: Say) -> None:
    """It has its text, date and state, and a new id."""
    task_id = say("add_task", title="a", description="b", due="2026-12-05T09:00").content["id"]
    assert say("complete_task", task_id=task_id).content["before"]["completed"] is False
    before = say("delete_task", task_id=task_id).content["before"]
    again = say("add_task", "Asia/Tokyo", **{name: before[name] for name in ("title", "description", "due")}).content
    completed = say("complete_task", task_id=again["id"]).content
    assert restorable(completed) == restorable(before)
    assert completed["id"] != task_id


def commit_when_waited_for(other: psycopg.Connection[Any], rows: Rows) -> None:
    """Commit as soon as another transaction waits for the lock of this one. Fail after a minute."""
    waiting = "select from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
    deadline = time.monotonic() + 60
    while not rows.execute(waiting, [other.info.backend_pid]).fetchall():
        assert time.monotonic() < deadline
    other.commit()


@pytest.mark.parametrize("name", ["update_task", "complete_task", "delete_task"])
def test_two_changes_at_once_each_have_a_true_before(name: str, say: Say, server: Postgres, rows: Rows) -> None:
    """The change that waits for the other one returns what that has left: each state is in a result."""
    task_id = say("add_task", title="first").content["id"]
    with psycopg.connect(server.superuser_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("update task set title = 'second', due_on = '2026-12-05' where id = %s", [task_id])
        waiting = pool.submit(commit_when_waited_for, other, rows)
        changed = say(name, task_id=task_id, **({"description": "mine"} if name == "update_task" else {})).content
        waiting.result()
    assert (changed["title"], changed["due"]) == ("second", "2026-12-05")
    before = changed["before"]
    assert (before["title"], before["due"], before["description"], before["completed"]) == (
        "second",
        "2026-12-05",
        "",
        False,
    )


def test_a_task_that_another_change_deletes_is_not_found(say: Say, server: Postgres, rows: Rows) -> None:
    """The change waits for the deletion, and then has nothing to change."""
    task_id = say("add_task", title="first").content["id"]
    with psycopg.connect(server.superuser_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("delete from task where id = %s", [task_id])
        waiting = pool.submit(commit_when_waited_for, other, rows)
        failure = say("update_task", task_id=task_id, title="mine").failure
        waiting.result()
    assert failure == f"Task {task_id} was not found."
