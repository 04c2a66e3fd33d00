"""The laws of the design. Each has a test that fails when the law is broken."""

import ast
import asyncio
import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg

from dev.standin_model.client import StandIn
from tests.conftest import ROOT, Logs, Person, run

Rows = psycopg.Connection[dict[str, Any]]

SHIPPED = sorted([*ROOT.glob("functions/**/*.py"), *ROOT.glob("shared/taskchat/**/*.py")])


def trees() -> list[tuple[Path, ast.Module]]:
    """Everything that ships, parsed."""
    return [(path, ast.parse(path.read_text())) for path in SHIPPED]


class TestTheAgentDecides:
    """Law 1: no intent detection, keyword matching or routing by meaning outside the model."""

    def test_nothing_that_ships_knows_a_word_of_what_people_say(self) -> None:
        """No comparison, `in`, match pattern or regular expression holds a word that a person would use for a wish."""
        words = {"add", "create", "list", "show", "finish", "done", "complete", "delete", "remove", "rename", "update"}
        for path, tree in trees():
            for node in ast.walk(tree):
                if isinstance(node, ast.Compare | ast.MatchValue) or _is_text_test(node):
                    constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                    spoken = {w for c in constants if isinstance(c, str) for w in c.lower().split()} & words
                    assert not spoken, f"{path}:{node.lineno} looks for {spoken}"

    def test_the_message_is_read_by_nobody_but_the_model(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """A message full of wishes does nothing when the model only talks."""
        standin.fault("say", text="Nothing done.", match="delete 1")
        answer = alice.say("add milk, finish 1, delete 1, list my tasks").json
        assert (answer["response"], answer["tool_calls"]) == ("Nothing done.", [])
        assert rows.execute("select from task where user_id = %s", [alice.id]).fetchall() == []

    def test_a_message_without_any_wish_changes_what_the_model_says(self, alice: Person, standin: StandIn) -> None:
        """A message in no language at all adds a task when the model calls the tool."""
        standin.fault("call", calls=[{"name": "add_task", "arguments": {"title": "x"}}], match="zzz")
        (call,) = alice.say("zzz").json["tool_calls"]
        assert call["outcome"] == "ok"


def _is_text_test(node: ast.AST) -> bool:
    if isinstance(node, ast.Dict):
        return any(isinstance(value, ast.Name | ast.Attribute | ast.Lambda) for value in node.values)
    tests = {"get", "startswith", "endswith", "find", "index", "count", "search", "match", "fullmatch", "compile"}
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in tests


class TestToolsOnly:
    """Law 2: every change to a task goes through a tool; the agent holds no session, no engine, no SQL."""

    def test_the_agent_imports_no_database(self) -> None:
        """Nothing of SQLAlchemy, SQLModel, the driver, our database or our queries is named in the agent's module."""
        imported = set(_imports(ROOT / "functions/chat/agent.py"))
        forbidden = {"sqlalchemy", "sqlmodel", "pg8000", "taskchat.db", "taskchat.tasks"}
        assert not {name for name in imported if any(name == f or name.startswith(f"{f}.") for f in forbidden)}

    def test_what_the_agent_holds_leads_to_no_engine(self, alice: Person) -> None:
        """Following every attribute of a run and of the agent's tools, no session, engine or connection is met."""
        from chat.agent import Run
        from chat.app import process

        alice.say("Add buy milk")
        agent = process.turns.agent
        kinds = {type(thing).__module__.split(".")[0] for thing in _reachable(agent)}
        assert not kinds & {"sqlalchemy", "sqlmodel", "pg8000"}
        held = {
            "tools",
            "lease",
            "calls",
            "max_destructive",
            "left",
            "unsettled",
            "resumed",
            "failure",
            "usage",
            "asked",
        }
        assert set(inspect.signature(Run).parameters) == held


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _reachable(root: object) -> list[object]:
    """All objects held in attributes, lists and dicts below `root`, without following functions or modules."""
    seen: dict[int, object] = {}
    queue = [root]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or "Proxy" in type(thing).__name__:  # a proxy imports what it stands for when it is asked
            continue
        if isinstance(thing, type | ModuleType | logging.Handler) or inspect.isroutine(thing):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, dict):
            queue += thing.values()
        elif isinstance(thing, list | tuple | set):
            queue += thing
        else:
            queue += vars(thing).values() if hasattr(thing, "__dict__") else []
    return list(seen.values())


class TestStateless:
    """Law 3: nothing of a user or conversation outlives an invocation in memory."""

    def test_people_who_share_a_warm_environment_share_nothing_else(self, alice: Person, bob: Person) -> None:
        """Interleaved turns of two people: each finds exactly what they said and did."""
        hers, his = alice.say("Add buy milk").json, bob.say("Add feed the cat").json
        again, too = (
            alice.say("what is left?", hers["conversation_id"]).json,
            bob.say("what is left?", his["conversation_id"]).json,
        )
        assert "buy milk" in again["response"]
        assert "cat" not in json.dumps(again)
        assert "feed the cat" in too["response"]
        assert "milk" not in json.dumps(too)

    def test_no_text_of_a_person_is_left_in_memory(self, alice: Person) -> None:
        """After a turn, nothing that outlives it holds a word of it."""
        from chat.app import app, process

        alice.say("Add zanzibarquux")
        kept = [process, app]
        texts = [text for text in _reachable(kept) if isinstance(text, str)]
        assert any("auth.example.com" in text for text in texts)  # the search does reach what is kept
        assert not [text for text in texts if "zanzibarquux" in text or alice.id in text]

    def test_a_new_environment_goes_on_where_the_old_one_ended(self, alice: Person) -> None:
        """The database alone is enough: with everything in memory dropped, the conversation continues."""
        from tests.conftest import forget

        first = alice.say("Add buy milk").json
        forget()
        second = alice.say("What did I just say?", first["conversation_id"]).json
        assert "Add buy milk" in second["response"]


class TestOneEntryPoint:
    """Law 4: the chat route is the only way to express an intention."""

    def test_the_routes_are_these(self) -> None:
        """One route takes a message; the others only tell."""
        from chat.app import app

        routes = {(method, route.path) for route in _flat(app.routes) for method in getattr(route, "methods", ())}
        assert routes == {("POST", "/api/{user_id}/chat"), ("GET", "/health")}


def _flat(routes: Any) -> list[Any]:
    """The routes, with those of included routers among them, however deep."""
    return [
        inner
        for route in routes
        for inner in (_flat(route.original_router.routes) if hasattr(route, "original_router") else [route])
    ]


class TestFiveTools:
    """Law 5: stateless, explicit parameters with user_id among them, structured output. tests/tasks says which five."""

    def test_each_takes_the_user_and_hides_it(self) -> None:
        """`user_id` is a parameter of every tool's function and in no tool's schema."""
        from chat.app import process

        for tool in run(process.tools.list_tools()):
            assert "user_id" in inspect.signature(tool.fn).parameters
            assert "user_id" not in json.dumps(tool.to_mcp_tool().model_dump(mode="json"))

    def test_each_has_a_typed_result(self) -> None:
        """Every tool's output has a schema with named properties."""
        from chat.app import process

        assert all(tool.output_schema["properties"] for tool in run(process.tools.list_tools()))


class TestEveryCallShows:
    """Law 6: each call is logged, kept and returned, failed ones too."""

    def test_log_record_and_answer_agree(self, alice: Person, rows: Rows, logs: Logs) -> None:
        """A good and a failed call stand in the log, in the table and in the answer, by the same ids."""
        answer = alice.say("add buy milk and finish 987654321").json
        logged = [line for line in logs() if line["message"] == "tool call"]
        kept = rows.execute("select * from tool_call where user_id = %s order by position", [alice.id]).fetchall()
        expected = [(call["call_id"], call["tool"], call["outcome"]) for call in answer["tool_calls"]]
        assert sorted(outcome for _, _, outcome in expected) == ["error", "ok"]
        assert [(line["call_id"], line["tool"], line["outcome"]) for line in logged] == expected
        assert [(row["call_id"], row["tool"], row["outcome"]) for row in kept] == expected


class TestTheOrderOfATurn:
    """Law 7: receive, fetch history, build input, persist user message, execute agent, persist response, return."""

    def test_seen_from_the_database(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """While the model thinks, the message is committed, the reply is not, and no transaction is open."""
        import threading

        from chat.app import handler  # noqa: F401  (imported here, so that the thread does not import)

        standin.fault("hang", match="add buy milk")
        answers: list[Any] = []
        turn = threading.Thread(target=_in_a_loop_of_its_own, args=(lambda: answers.append(alice.say("add buy milk")),))
        turn.start()
        standin.waiting(at_least=1)
        said = rows.execute("select role from message where user_id = %s", [alice.id]).fetchall()
        busy = rows.execute(
            "select query from pg_stat_activity where usename = 'taskchat_app' and state <> 'idle'"
        ).fetchall()
        lease = rows.execute("select lease_until > now() as held from conversation where user_id = %s", [alice.id])
        held = lease.fetchall()
        standin.release()
        turn.join()
        assert (said, busy, held) == ([{"role": "user"}], [], [{"held": True}])
        assert answers[0].status == 200

    def test_history_is_fetched_before_the_message_is_stored(self, alice: Person, standin: StandIn) -> None:
        """The model reads the new message once, at the end."""
        first = alice.say("Add buy milk").json
        standin.reset()
        alice.say("what is left?", first["conversation_id"])
        shown = [item for item in standin.requests()[0]["body"]["input"] if item.get("role") == "user"]
        assert [item["content"].split("\n")[1] for item in shown] == ["Add buy milk", "what is left?"]


def _in_a_loop_of_its_own(function: Any) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        function()
    finally:
        from tests.conftest import forget

        forget()
        loop.close()


class TestTheUserIsTheToken:
    """Law 8: user_id everywhere, from the token only. The model never sees it, never sets it."""

    def test_the_model_never_sees_it(self, alice: Person, standin: StandIn) -> None:
        """In no request to the model does the person's id occur."""
        first = alice.say("add buy milk, then finish the milk").json
        alice.say("what is left?", first["conversation_id"])
        assert alice.id not in json.dumps([[r["body"], r["headers"]] for r in standin.requests()])

    def test_the_model_cannot_set_it(self, alice: Person, bob: Person, standin: StandIn, rows: Rows) -> None:
        """A call with another's id in its arguments fails, and writes nothing for anybody."""
        calls = [{"name": "add_task", "arguments": {"title": "x", "user_id": bob.id}}]
        standin.fault("call", calls=calls, match="hello")
        (call,) = alice.say("hello").json["tool_calls"]
        assert call["outcome"] == "error"
        assert rows.execute("select from task where user_id = any(%s)", [[alice.id, bob.id]]).fetchall() == []


def test_the_mcp_function_imports_no_agent() -> None:
    """The second door pays for no model client: neither the Agents SDK nor openai is loaded."""
    code = "import sys, mcp_tools.app; print(sorted({'agents', 'openai', 'chat'} & sys.modules.keys()))"
    environment = {
        "PYTHONPATH": f"{ROOT / 'shared'}:{ROOT / 'functions'}",
        "DATABASE_URL": "postgresql://u:p@localhost/d",
        "AUTH_ISSUER": "https://auth.example.com",
        "AUTH_JWKS_URL": "https://auth.example.com/api/auth/jwks",
        "MCP_RESOURCE_URL": "https://api.example.com/mcp",
        "POWERTOOLS_METRICS_NAMESPACE": "taskchat",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
