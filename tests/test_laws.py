"""Test the eight rules of CONTRIBUTING.md ("Rules that always hold"): each class fails when its rule is broken."""

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
from tests.domain import example

Rows = psycopg.Connection[dict[str, Any]]

ADD = example.add("buy milk")
SHIPPED = sorted([*ROOT.glob("functions/**/*.py"), *ROOT.glob("shared/taskchat/**/*.py")])


def trees() -> list[tuple[Path, ast.Module]]:
    """Return every shipped file, parsed."""
    return [(path, ast.parse(path.read_text())) for path in SHIPPED]


class TestTheAgentDecides:
    """Rule 1: no intent detection, keyword matching or routing by meaning outside the model."""

    def test_shipped_code_matches_no_word_of_a_message(self) -> None:
        """No comparison, `in`, match pattern or regular expression has a word that users write for a wish."""
        words = {"add", "create", "list", "show", "finish", "done", "complete", "delete", "remove", "rename", "update"}
        for path, tree in trees():
            for node in ast.walk(tree):
                if isinstance(node, ast.Compare | ast.MatchValue) or _is_text_test(node):
                    constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                    found = {w for c in constants if isinstance(c, str) for w in c.lower().split()} & words
                    assert not found, f"{path}:{node.lineno} looks for {found}"

    def test_only_the_model_reads_the_message(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """A message full of wishes has no effect when the model only talks."""
        standin.fault("say", text="Nothing done.", match="delete 1")
        answer = alice.say("add milk, finish 1, delete 1, list everything").json
        assert (answer["response"], answer["tool_calls"]) == ("Nothing done.", [])
        assert example.rows_of(rows, alice.id) == []

    def test_a_message_without_a_wish_does_what_the_model_decides(self, alice: Person, standin: StandIn) -> None:
        """A message without meaning adds a row when the model calls the tool."""
        standin.fault("call", calls=[example.call_add("x")], match="zzz")
        (call,) = alice.say("zzz").json["tool_calls"]
        assert call["outcome"] == "ok"


def _is_text_test(node: ast.AST) -> bool:
    if isinstance(node, ast.Dict):
        return any(isinstance(value, ast.Name | ast.Attribute | ast.Lambda) for value in node.values)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "router":
        return False  # `router.get` declares a route
    tests = {"get", "startswith", "endswith", "find", "index", "count", "search", "match", "fullmatch", "compile"}
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in tests


class TestToolsOnly:
    """Rule 2: every change goes through a tool. The agent holds no session, no engine, no SQL."""

    def test_the_agent_imports_no_database(self) -> None:
        """The agent's module imports no SQLAlchemy, SQLModel, driver, database package or query."""
        imported = set(_imports(ROOT / "functions/chat/agent.py"))
        forbidden = {"sqlalchemy", "sqlmodel", "pg8000", "taskchat.database", "taskchat.tasks"}
        assert not {name for name in imported if any(name == f or name.startswith(f"{f}.") for f in forbidden)}

    def test_no_attribute_of_the_agent_leads_to_an_engine(self, alice: Person) -> None:
        """A walk over all attributes of the agent finds no session, engine or connection."""
        from chat.agent import Run
        from chat.app import process

        alice.say(ADD)
        agent = process.turns.runner.agent
        kinds = {type(thing).__module__.split(".")[0] for thing in _reachable(agent)}
        assert not kinds & {"sqlalchemy", "sqlmodel", "pg8000"}
        held = {
            "tools",
            "turn",
            "lease",
            "calls",
            "deletions_per_turn",
            "left",
            "unsettled",
            "resumed",
            "failure",
            "usage",
            "may_be_counted",
            "latest_arguments",
            "report",
            "is_streamed",
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
    """Return all objects in attributes, lists and dicts below `root`. Do not follow functions or modules."""
    seen: dict[int, object] = {}
    queue = [root]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or "Proxy" in type(thing).__name__:  # a lazy proxy would import its module
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
    """Rule 3: no data of a user or conversation stays in memory after an invocation."""

    def test_users_of_one_warm_environment_share_no_data(self, alice: Person, bob: Person) -> None:
        """In interleaved turns of two users, each finds exactly their own messages and rows."""
        hers, his = alice.say(example.add("buy milk")).json, bob.say(example.add("feed cats")).json
        again, too = (
            alice.say(example.show(), hers["conversation_id"]).json,
            bob.say(example.show(), his["conversation_id"]).json,
        )
        assert "buy milk" in again["response"]
        assert "cats" not in json.dumps(again)
        assert "feed cats" in too["response"]
        assert "milk" not in json.dumps(too)

    def test_no_text_of_a_user_stays_in_memory(self, alice: Person) -> None:
        """After a turn, no object that outlives it holds the user's text or id."""
        from chat.app import app, process

        alice.say(example.add("zanzibarquux"))
        kept = [process, app]
        texts = [text for text in _reachable(kept) if isinstance(text, str)]
        assert any("auth.example.com" in text for text in texts)  # the walk does reach what stays
        assert not [text for text in texts if "zanzibarquux" in text or alice.id in text]

    def test_a_new_environment_continues_a_conversation(self, alice: Person) -> None:
        """The database alone is enough after everything in memory is dropped."""
        from tests.conftest import reset_processes

        first = alice.say(ADD).json
        reset_processes()
        second = alice.say("What did I just say?", first["conversation_id"]).json
        assert ADD in second["response"]


class TestOneEntryPoint:
    """Rule 4: the chat route is the only way to express an intention."""

    def test_the_routes_are_these(self) -> None:
        """One route takes a message. The others read, or manage what the person owns. The domain's own only read."""
        from chat.app import app

        paths = app.openapi()["paths"]
        routes = {(method, path.removeprefix("/api/{user_id}")) for path, of in paths.items() for method in of}
        assert {route for route in routes if route[0] != "get"} == {
            ("post", "/chat"),
            ("patch", "/conversations/{conversation_id}"),
            ("delete", "/conversations/{conversation_id}"),
            ("delete", ""),
        }
        assert {path for method, path in routes if method == "get"} >= {
            "/health",
            "/conversations",
            "/conversations/{conversation_id}",
            "/export",
        }


class TestTools:
    """Rule 5: stateless tools with explicit parameters, user_id among them, and structured output."""

    def test_the_tools_are_those_of_the_toolset(self) -> None:
        """The server has each of the domain's tools, and no other."""
        from chat.app import process

        assert {tool.name for tool in run(process.tools.list_tools())} == {
            each.__name__ for each in example.toolset.tools
        }

    def test_each_tool_takes_the_user_and_hides_it(self) -> None:
        """`user_id` is a parameter of every tool's function and in no tool's schema."""
        from chat.app import process

        for tool in run(process.tools.list_tools()):
            assert "user_id" in inspect.signature(tool.fn).parameters
            assert "user_id" not in json.dumps(tool.to_mcp_tool().model_dump(mode="json"))

    def test_each_tool_has_a_typed_result(self) -> None:
        """Every tool's output has a schema with named properties."""
        from chat.app import process

        assert all(tool.output_schema["properties"] for tool in run(process.tools.list_tools()))


class TestEveryCallShows:
    """Rule 6: each call is logged, stored and returned, also a failed one."""

    def test_log_record_and_answer_agree(self, alice: Person, rows: Rows, logs: Logs) -> None:
        """A good and a failed call are in the log, in the table and in the answer, with the same ids."""
        answer = alice.say(ADD.then(example.fail())).json
        logged = [line for line in logs() if line["message"] == "tool call"]
        stored = rows.execute("select * from tool_call where user_id = %s order by position", [alice.id]).fetchall()
        expected = [(call["call_id"], call["tool"], call["outcome"]) for call in answer["tool_calls"]]
        assert sorted(outcome for _, _, outcome in expected) == ["error", "ok"]
        assert [(line["call_id"], line["tool"], line["outcome"]) for line in logged] == expected
        assert [(row["call_id"], row["tool"], row["outcome"]) for row in stored] == expected


class TestTheOrderOfATurn:
    """Rule 7: receive, fetch history, build input, persist user message, execute agent, persist response, return."""

    def test_the_message_is_stored_before_the_model_is_called(
        self, alice: Person, standin: StandIn, rows: Rows
    ) -> None:
        """While the model thinks, the message is committed, the reply is not, and no transaction is open."""
        import threading

        from chat.app import handler  # noqa: F401  (an import in the thread would take its loop)

        standin.fault("hang", match=ADD)
        answers: list[Any] = []
        turn = threading.Thread(target=_in_own_loop, args=(lambda: answers.append(alice.say(ADD)),))
        turn.start()
        standin.waiting(at_least=1)
        stored = rows.execute("select role from message where user_id = %s", [alice.id]).fetchall()
        busy = rows.execute(
            "select query from pg_stat_activity where usename = 'taskchat_app' and state <> 'idle'"
        ).fetchall()
        lease = rows.execute("select lease_until > now() as held from conversation where user_id = %s", [alice.id])
        held = lease.fetchall()
        standin.release()
        turn.join()
        assert (stored, busy, held) == ([{"role": "user"}], [], [{"held": True}])
        assert answers[0].status == 200

    def test_history_is_fetched_before_the_message_is_stored(self, alice: Person, standin: StandIn) -> None:
        """The model reads the new message once, at the end."""
        first = alice.say(ADD).json
        standin.reset()
        alice.say(example.show(), first["conversation_id"])
        shown = [item for item in standin.requests()[0]["body"]["input"] if item.get("role") == "user"]
        assert [item["content"].split("\n")[1] for item in shown] == [ADD, example.show()]


def _in_own_loop(function: Any) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        function()
    finally:
        from tests.conftest import reset_processes

        reset_processes()
        loop.close()


class TestTheUserIsTheToken:
    """Rule 8: user_id everywhere, from the token only. The model never sees it and never sets it."""

    def test_the_model_never_sees_the_user_id(self, alice: Person, standin: StandIn) -> None:
        """No request to the model contains the user's id."""
        first = alice.say(ADD.then(example.change("buy milk"))).json
        alice.say(example.show(), first["conversation_id"])
        assert alice.id not in json.dumps([[r["body"], r["headers"]] for r in standin.requests()])

    def test_the_model_cannot_set_the_user_id(self, alice: Person, bob: Person, standin: StandIn, rows: Rows) -> None:
        """A call with another user's id in its arguments fails, and writes no row for either user."""
        add = example.call_add("x")
        standin.fault("call", calls=[add | {"arguments": add["arguments"] | {"user_id": bob.id}}], match="hello")
        (call,) = alice.say("hello").json["tool_calls"]
        assert call["outcome"] == "error"
        assert example.rows_of(rows, alice.id) == example.rows_of(rows, bob.id) == []


def test_the_mcp_function_imports_no_agent() -> None:
    """The MCP function loads neither the Agents SDK nor openai."""
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
