"""The panel of the page groups tasks by their dates, and says each tool call in a line."""

import json
from typing import Any

import pytest

from dev import node
from tests.conftest import ROOT

MODULE = (ROOT / "shared" / "taskchat" / "tasks" / "panel.js").as_uri()
NOW = "2026-11-25T12:00:00Z"
"""A Wednesday."""
SECONDS = 60

SCRIPT = """
import { mock } from "node:test";
const panel = await import(MODULE);
mock.timers.enable({ apis: ["Date"], now: new Date(NOW) });
globalThis.document = { activeElement: undefined };
const element = (tag, attributes = {}, ...children) => {
  const made = { tag, attributes, children, addEventListener: () => {}, contains: () => false };
  return Object.assign(made, { append: (...more) => made.children.push(...more) });
};
const root = { querySelector: () => null, replaceChildren: (...children) => { root.children = children; } };
console.log(JSON.stringify(await (async () => { BODY })()));
"""


def run(body: str, **values: Any) -> Any:
    """Return the value of a piece of JavaScript that uses the module, in Paris at NOW."""
    script = SCRIPT.replace("BODY", body)
    for name, value in {"MODULE": MODULE, "NOW": NOW, **values}.items():
        script = script.replace(name, json.dumps(value))
    known = {"TZ": "Europe/Paris", "LC_ALL": "en_US.UTF-8"}
    done = node.run([node.program(), "--input-type=module", "-e", script], SECONDS, known=known)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def task(due: str | None) -> dict[str, Any]:
    """Return a task of the route, with its date as its title."""
    return {"title": due or "never", "description": "", "completed": False, "due": due}


def test_tasks_are_grouped_by_the_person_s_day() -> None:
    """A day is the same everywhere. An instant belongs to its day in the person's zone, and the week ends on Sunday."""
    groups = {
        "Overdue": ["2026-11-24", "2026-11-25T11:00+00:00[UTC]"],
        "Today": ["2026-11-25", "2026-11-25T20:00+01:00[Europe/Paris]"],
        "This week": ["2026-11-26", "2026-11-29"],
        "Later": ["2026-11-29T23:30+00:00[UTC]", "2026-11-30", "2027-01-01T09:00+05:30"],
        "Without a date": [None],
    }
    tasks = [task(due) for dates in groups.values() for due in dates]
    body = """
      await panel.render(root, { element, get: async () => ({ tasks: TASKS, next_cursor: null }) });
      const titles = (list) => list.children.map((item) => item.children[0].children[0]);
      const lists = root.children.filter(({ tag }) => tag === "ul");
      return lists.map((list) => [list.attributes["aria-label"], titles(list)]);
    """
    assert dict(run(body, TASKS=tasks)) == {name: [due or "never" for due in dates] for name, dates in groups.items()}


def test_all_pages_are_read() -> None:
    """The pending tasks only: the completed ones are read when the person opens them."""
    body = """
      const asked = [];
      const pages = [{ tasks: TASKS, next_cursor: "next" }, { tasks: TASKS, next_cursor: null }];
      await panel.render(root, { element, get: async (path) => { asked.push(path); return pages.shift(); } });
      return asked;
    """
    pending = "/tasks?status=pending&limit=100"
    assert run(body, TASKS=[task(None)]) == [pending, f"{pending}&cursor=next"]


DONE = {"outcome": "ok", "result": {"title": "buy milk", "due": None}}
CALLS = [
    ({"tool": "add_task", "arguments": {"title": "buy milk"}}, "Adding buy milk…"),
    ({"tool": "add_task", "arguments": {"title": "buy milk"}, **DONE}, "Added buy milk"),
    ({"tool": "complete_task", "arguments": {"task_id": 3}}, "Finishing task 3…"),
    ({"tool": "complete_task", "arguments": {"task_id": 3}, **DONE}, "Finished buy milk"),
    ({"tool": "delete_task", "arguments": {"task_id": 3}, **DONE}, "Deleted buy milk"),
    ({"tool": "list_tasks", "arguments": {}, "outcome": "ok", "result": {"tasks": []}}, "Looked at the tasks"),
    ({"tool": "update_task", "arguments": {"task_id": 3, "completed": False}, **DONE}, "Reopened buy milk"),
    ({"tool": "update_task", "arguments": {"task_id": 3, "due": "none"}, **DONE}, "Removed the date of buy milk"),
    ({"tool": "update_task", "arguments": {"task_id": 3, "title": "a", "completed": True}, **DONE}, "Changed buy milk"),
    (
        {
            "tool": "update_task",
            "arguments": {"task_id": 3, "title": "buy oats"},
            "outcome": "ok",
            "result": {"title": "buy oats", "before": {"title": "buy milk"}},
        },
        "Renamed buy milk to buy oats",
    ),
    (
        {
            "tool": "update_task",
            "arguments": {"task_id": 3, "due": "2026-11-27"},
            "outcome": "ok",
            "result": {"title": "buy milk", "due": "2026-11-27"},
        },
        "Moved buy milk to Fri, Nov 27",
    ),
    (
        {
            "tool": "complete_task",
            "arguments": {"task_id": 3},
            "outcome": "error",
            "result": {"error": "Task 3 was not found."},
        },
        "Could not finish task 3: Task 3 was not found.",
    ),
    ({"tool": "send_mail", "arguments": {}, "outcome": "ok", "result": {}}, "Called send mail"),
    ({"tool": "add_task", "arguments": {}, "outcome": "ok", "result": {}}, "Added a task"),
]


def test_each_call_is_a_line() -> None:
    """While it runs, when it is done, and when it failed. A tool that the module does not know has its name."""
    lines = run("return CALLS.map(panel.describe);", CALLS=[call for call, _ in CALLS])
    assert lines == [line for _, line in CALLS]


@pytest.mark.parametrize(
    ("call", "concerns"),
    [
        ({"tool": "add_task", "outcome": "ok"}, True),
        ({"tool": "add_task", "outcome": "error"}, False),
        ({"tool": "list_tasks", "outcome": "ok"}, False),
        ({"tool": "send_mail", "outcome": "ok"}, False),
    ],
)
def test_a_call_that_changes_a_task_concerns_the_panel(call: dict[str, str], concerns: bool) -> None:
    """The others leave it as it is."""
    assert run("return panel.concerns(CALL);", CALL=call) is concerns
