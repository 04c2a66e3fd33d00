"""`GET /api/{user_id}/tasks` gives the list as the tool gives it, without the model."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from tests.conftest import ROOT, Person, reset_processes, serving
from tests.test_contract import CANARY, assert_problem
from tests.test_mcp_endpoint import McpClient

FAR = "2199-01-04"


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Use Postgres directly: the route does not depend on the pooler."""
    return server.app_url


@pytest.fixture
def client(alice: Person) -> McpClient:
    """Return an MCP client of the person, who makes tasks with it."""
    return McpClient(alice.mcp_token)


def titles(person: Person, **query: Any) -> list[str]:
    """Return the titles on the page."""
    answer = person.get("/tasks", **query)
    assert answer.status == 200, answer.body
    return [task["title"] for task in answer.json["tasks"]]


@pytest.mark.parametrize("status", ["all", "pending", "completed"])
@pytest.mark.parametrize("due", [None, "overdue", "today", f"{FAR}/..", "../2000-01-01", FAR])
def test_the_list_is_the_tools(
    alice: Person, client: McpClient, status: str, due: str | None, standin: StandIn
) -> None:
    """Each filter gives the same tasks with the same fields, and asks no model."""
    for title, date in (("a", None), ("b", FAR), ("c", "1999-12-31"), ("d", f"{FAR}T09:00[Europe/Paris]")):
        task = client.do("add_task", title=title, due=date)["id"]
    client.do("complete_task", task_id=task)
    query = {"status": status} | ({"due": due} if due else {})
    assert alice.get("/tasks", **query).json == client.do("list_tasks", **query)
    assert standin.requests() == []


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_hold_each_task_once(alice: Person, client: McpClient, limit: int) -> None:
    """They do so in order of their dates, while tasks that were read change."""
    for title, date in (("none", None), ("late", FAR), ("early", "1999-12-31"), ("also late", FAR)):
        client.do("add_task", title=title, due=date)
    found, place = list[str](), dict[str, str]()
    while place.get("cursor", "") is not None:
        page = alice.get("/tasks", limit=limit, **place).json
        assert len(page["tasks"]) <= limit
        found += [task["title"] for task in page["tasks"]]
        client.do("update_task", task_id=page["tasks"][0]["id"], description="read")
        place = {"cursor": page["next_cursor"]}
    assert found == ["early", "late", "also late", "none"]


def test_a_word_is_read_in_the_zone_of_the_query(alice: Person, client: McpClient) -> None:
    """At every moment the zones that are furthest apart have two different days: a task is today's in one of them."""
    days = {zone: alice_today(zone) for zone in ("Pacific/Kiritimati", "Etc/GMT+12")}
    for zone, day in days.items():
        client.do("add_task", title=zone, due=day)
    for zone in days:
        assert titles(alice, due="today", timezone=zone) == [zone]


def alice_today(zone: str) -> str:
    """Return the day that it is in the zone."""
    from datetime import UTC, datetime
    from zoneinfo import ZoneInfo

    return datetime.now(UTC).astimezone(ZoneInfo(zone)).date().isoformat()


def test_nobody_sees_anothers_tasks(alice: Person, bob: Person, client: McpClient) -> None:
    """The path must name the token's user, and a cursor gives nobody another's rows."""
    for title in ("a", "b"):
        client.do("add_task", title=title)
    place = alice.get("/tasks", limit=1).json["next_cursor"]
    assert bob.get("/tasks", cursor=place).json == bob.get("/tasks").json == {"tasks": [], "next_cursor": None}
    assert_problem(bob.call("GET", "/tasks", of=alice.id), "forbidden")


BAD = {
    "status": ["", "done", "ALL", CANARY],
    "due": ["", "tomorrow", "2026-02-30", "2026-13-01/..", "../..x", "0000-01-01", "99999-01-01", "\x00", CANARY],
    "cursor": ["", "x", "W10", "W251bGxd", "null", CANARY],
    "limit": ["0", "101", "x", "-1", "1.5"],
    "timezone": ["", "Mars/Base", "../etc/passwd", "UTC\x00", CANARY],
    "unknown": ["1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD.items() for value in bad])
def test_a_bad_parameter_gets_422(alice: Person, name: str, value: str) -> None:
    """The answer names the parameter, and not its value."""
    answer = alice.get("/tasks", **{name: value})
    assert_problem(answer, "invalid-input", "fields")
    assert [fault["field"] for fault in answer.json["fields"]] == [name]


def test_the_example_is_an_answer(alice: Person, client: McpClient) -> None:
    """It has the members of a page, and the date as a result shows it."""
    from chat.app import app

    answer = app.openapi()["paths"]["/api/{user_id}/tasks"]["get"]["responses"]["200"]
    example = answer["content"]["application/json"]["example"]
    for _ in range(2):
        client.do("add_task", title=example["tasks"][0]["title"], due=example["tasks"][0]["due"])
    page = alice.get("/tasks", limit=1).json
    assert (page.keys(), page["tasks"][0].keys()) == (example.keys(), example["tasks"][0].keys())
    for name in ("title", "due", "weekday"):
        assert page["tasks"][0][name] == example["tasks"][0][name]


def test_another_method_gets_405(alice: Person) -> None:
    """Only the chat acts on what a person wants."""
    for method in ("POST", "PATCH", "DELETE", "HEAD"):
        answer = alice.call(method, "/tasks", {"title": CANARY})
        assert_problem(answer, "method-not-allowed")
        assert answer.headers["allow"] == "GET"
    assert_problem(alice.get(f"/tasks/{uuid4()}"), "not-found")


def test_the_routes_by_curl(alice: Person, tmp_path: Path) -> None:
    """A shell prints the transcript of docs/http.md, but for ids and times."""
    from chat.app import app

    page = (ROOT / "docs" / "http.md").read_text()
    (message,) = re.findall(r'After a first message, "(.+?)"', page)
    command, transcript = re.findall(r"```(?:sh)?\n(.*?)```", page, re.DOTALL)
    assert alice.say(message).status == 200
    reset_processes()  # the requests that follow come to another process
    with serving(app) as url:
        known = os.environ | {"URL": url, "USER_ID": alice.id, "TOKEN": alice.token}
        shell = ["sh", "-c", command]  # of our own page
        done = subprocess.run(shell, env=known, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603
    assert _masked(done.stdout) == transcript


def _masked(text: str) -> str:
    """Return the text with `…` in place of ids, times and durations."""
    known = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|call_[0-9a-f]+|\d{4}-\d\d-\d\dT[\d:.]+Z"
    return re.sub(r'("duration_ms":|"id":|\()[\d.]+', r"\1…", re.sub(known, "…", text))
