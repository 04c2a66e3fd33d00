"""A database that is down, goes away, comes back, or sleeps: what the person gets, and that nothing is done twice."""

import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import event

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.tokens import Issuer
from taskchat.conversations.turns import turn_id_for
from tests import db_assertions as truth
from tests import proxy
from tests.conftest import Logs, Person, databases, forget
from tests.gateway import Response
from tests.proxy import Proxy
from tests.test_mcp_door import McpClient

Rows = psycopg.Connection[dict[str, Any]]
Tell = Callable[[str], None]
DO = "add buy milk and call mum, then finish the milk"
EFFECTS = ["insert buy milk", "insert call mum", "update buy milk"]
COMMITS = range(1, 7)
"""The commits of that turn: its beginning, four tool calls, its reply."""
LONG = 9.0
"""Seconds of darkness that outlast every attempt of a request that has less time."""
CUTS = 150 if "THOROUGH" in os.environ else 12
"""Places at which the wire is cut, for each direction, way and API."""
COLD = 0.15
"""How often the connection is not there yet when the request comes."""
SEED = int(os.environ.get("CUT_SEED") or random.SystemRandom().randrange(10**6))


def lines_of_calls(logs: Logs) -> list[dict[str, Any]]:
    """The audit lines since the test began."""
    return [line for line in logs() if line["message"] == "tool call"]


def check_told(rows: Rows, lines: list[dict[str, Any]], person: Person) -> None:
    """Each recorded call has an audit line. The last one tells how the call ended, or that this is unknown."""
    told = {line["call_id"]: line["outcome"] for line in lines}
    kept = rows.execute("select call_id, outcome from tool_call where user_id = %s", [person.id]).fetchall()
    for row in kept:
        assert told.get(row["call_id"]) in (row["outcome"], "unknown"), (row, lines)


def check_done_once(person: Person, rows: Rows, answer: Any) -> None:
    """One message, one reply, two tasks of which one is finished, and every call of the answer on record once."""
    said = rows.execute("select role from message where user_id = %s order by position", [person.id]).fetchall()
    tasks = rows.execute("select title, completed from task where user_id = %s order by id", [person.id]).fetchall()
    calls = rows.execute("select call_id from tool_call where user_id = %s order by position", [person.id]).fetchall()
    assert [row["role"] for row in said] == ["user", "assistant"]
    assert [(row["title"], row["completed"]) for row in tasks] == [("buy milk", True), ("call mum", False)]
    assert [row["call_id"] for row in calls] == [call["call_id"] for call in answer["tool_calls"]]


@contextmanager
def at_the_line(message: str, do: Callable[[], None]) -> Iterator[None]:
    """Do something at the moment at which the program logs that line."""
    from chat.turn import logger

    class Watcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == message:
                do()

    watcher = Watcher()
    logger.addHandler(watcher)
    try:
        yield
    finally:
        logging.getLogger(logger.name).removeHandler(watcher)


def let_leases_run_out(rows: Rows, person: Person) -> None:
    """As if the time had passed."""
    rows.execute("update conversation set lease_until = now() where user_id = %s and lease_until > now()", [person.id])


class TestThroughTheWire:
    """With a wire that can be cut between program and Postgres."""

    @pytest.fixture(scope="class")
    @classmethod
    def wire(cls, server: Postgres) -> Iterator[Proxy]:
        """The wire."""
        with proxy.running(server.app_url) as running:
            yield running

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, wire: Proxy, server: Postgres) -> str:
        """The runtime role's URL through it."""
        return wire.url(server.app_url)

    @pytest.fixture(autouse=True)
    def whole(self, wire: Proxy) -> Iterator[None]:
        """The wire is mended after each test."""
        yield
        wire.reset()
        wire.light()

    def lose(self, wire: Proxy, nth: int, dark: float = 0.0) -> None:
        """Have the answer to the nth commit from now be lost, and nobody be able to connect for a while then."""
        commits = 0

        def count(_connection: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == nth:
                wire.lose_answer_to, wire.dark = b"commit", dark

        for database in databases():
            event.listen(database.engine, "commit", count)

    @pytest.mark.parametrize("dark", [0.0, 0.3])
    @pytest.mark.parametrize("nth", COMMITS)
    def test_the_answer_to_a_commit_is_lost(
        self, alice: Person, wire: Proxy, rows: Rows, logs: Logs, nth: int, dark: float
    ) -> None:
        """Whichever commit of the turn it is, and be the database away for a moment: it is looked up, and goes on."""
        self.lose(wire, nth, dark)
        answer = alice.say(DO, key="k")
        assert (wire.lost, answer.status) == (1, 200), answer.body
        check_done_once(alice, rows, answer.json)
        check_told(rows, lines_of_calls(logs), alice)
        assert {line["outcome"] for line in lines_of_calls(logs)} == {"ok"}
        assert alice.say(DO, key="k").body == answer.body

    @pytest.mark.parametrize("nth", [1, 2, 4, 6])
    def test_the_answer_to_a_commit_is_lost_and_the_database_stays_away(
        self, alice: Person, wire: Proxy, rows: Rows, logs: Logs, nth: int
    ) -> None:
        """The person is told to come back, and nothing that is not true; later they find all of it done once."""
        self.lose(wire, nth, LONG)
        first = alice.say(DO, key="k", seconds=8)
        assert (wire.lost, first.status) == (1, 503)
        assert first.headers["retry-after"]
        recorded = truth.calls(rows, alice.id, str(turn_id_for(alice.id, "k")))
        if 1 < nth < len(COMMITS):  # the call in question took effect, and nobody could know
            assert first.json.keys() >= {"conversation_id", "turn_id"}
            assert "tool_calls" not in first.json
            assert [line["outcome"] for line in lines_of_calls(logs)] == ["ok"] * (nth - 2) + ["unknown"]
        else:
            assert first.json.get("tool_calls", []) == recorded
        check_told(rows, lines_of_calls(logs), alice)
        wire.light()
        let_leases_run_out(rows, alice)
        check_done_once(alice, rows, alice.say(DO, key="k").json)

    def test_a_call_that_is_found_out_at_the_end_is_told(
        self, alice: Person, wire: Proxy, rows: Rows, logs: Logs
    ) -> None:
        """The database comes back when the turn is over: its last transaction reads what took effect."""
        self.lose(wire, 3, LONG)
        with at_the_line("turn interrupted", wire.light):
            answer = alice.say(DO, key="k")
        assert (wire.lost, answer.status) == (1, 503)
        recorded = truth.calls(rows, alice.id, answer.json["turn_id"])
        assert [call["tool"] for call in recorded] == ["add_task", "add_task"]
        assert json.dumps(answer.json["tool_calls"], sort_keys=True) == json.dumps(recorded, sort_keys=True)
        lines = [(line["call_id"], line["outcome"]) for line in lines_of_calls(logs)]
        first, second = (call["call_id"] for call in recorded)
        assert lines == [(first, "ok"), (second, "unknown"), (second, "ok")]
        check_done_once(alice, rows, alice.say(DO, key="k").json)

    def test_a_call_that_was_not_done_is_kept_as_failed(
        self, alice: Person, wire: Proxy, rows: Rows, logs: Logs
    ) -> None:
        """The commit itself was lost. Its place is taken for good, and the model makes the call once more."""
        commits = 0

        def cut(_connection: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == 2:
                wire.cut_saying = wire.said + 3

        for database in databases():
            event.listen(database.engine, "commit", cut)
        answer = alice.say("add buy milk", key="k")
        assert (wire.lost, answer.status) == (1, 200)
        truth.check_turn(rows, alice.id, "add buy milk", answer)
        assert [call["outcome"] for call in answer.json["tool_calls"]] == ["error", "ok"]
        assert "Nothing was changed" in answer.json["tool_calls"][0]["result"]["error"]
        assert [line["outcome"] for line in lines_of_calls(logs)] == ["error", "ok"]
        assert truth.tasks(rows, alice.id) == [("buy milk", False)]

    @pytest.mark.parametrize("dark", [0.0, 0.3])
    def test_a_failed_call_s_commit_is_lost(
        self, alice: Person, wire: Proxy, rows: Rows, logs: Logs, dark: float
    ) -> None:
        """The record of a failure is looked up in the same way, and the turn goes on."""
        self.lose(wire, 2, dark)
        answer = alice.say("finish 987654321, then add buy milk", key="k")
        assert (wire.lost, answer.status) == (1, 200)
        truth.check_turn(rows, alice.id, "finish 987654321, then add buy milk", answer)
        assert [call["outcome"] for call in answer.json["tool_calls"]] == ["error", "ok"]
        check_told(rows, lines_of_calls(logs), alice)

    @pytest.mark.parametrize("dark", [0.0, 0.3])
    def test_an_mcp_call_s_commit_is_lost(
        self, alice: Person, wire: Proxy, rows: Rows, logs: Logs, dark: float
    ) -> None:
        """The client is told what is true, so that it has nothing to repeat."""
        self.lose(wire, 1, dark)
        result = McpClient(alice.mcp_token).call("add_task", title="buy milk")
        assert (wire.lost, result.get("isError", False)) == (1, False), result
        assert result["structuredContent"]["title"] == "buy milk"
        assert truth.tasks(rows, alice.id) == [("buy milk", False)]
        assert [line["outcome"] for line in lines_of_calls(logs)] == ["ok"]

    def test_an_mcp_call_s_commit_is_lost_and_the_database_stays_away(
        self, alice: Person, wire: Proxy, rows: Rows, logs: Logs
    ) -> None:
        """The client is told that it may have been done, and the audit line says that nobody knows."""
        self.lose(wire, 1, LONG)
        answer = McpClient(alice.mcp_token).request(
            "tools/call", name="add_task", arguments={"title": "buy milk"}, seconds=8
        )
        result = answer.json["result"]
        assert (wire.lost, result["isError"]) == (1, True)
        assert "may have been done" in result["content"][0]["text"]
        assert [line["outcome"] for line in lines_of_calls(logs)] == ["unknown"]
        check_told(rows, lines_of_calls(logs), alice)

    def test_a_failed_mcp_call_s_commit_is_lost_and_the_database_stays_away(
        self, alice: Person, wire: Proxy, logs: Logs
    ) -> None:
        """That it failed is certain, whatever became of its record."""
        self.lose(wire, 1, LONG)
        answer = McpClient(alice.mcp_token).request("tools/call", name="add_task", arguments={"title": ""}, seconds=8)
        assert wire.lost == 1
        assert answer.json["result"]["content"][0]["text"].startswith("Invalid arguments: title")
        assert [line["outcome"] for line in lines_of_calls(logs)] == ["unknown"]

    def test_a_key_is_free_at_once_after_its_beginning_s_commit_was_lost(
        self, alice: Person, wire: Proxy, rows: Rows
    ) -> None:
        """Nothing is left of the attempt that could hold the conversation, and the allowance was asked for once."""
        self.lose(wire, 1, 0.3)
        answer = alice.say("add buy milk", key="k")
        assert (wire.lost, answer.status) == (1, 200)
        assert truth.lease(rows, alice.id, answer.json["conversation_id"]) is None
        assert alice.say("what is left?", answer.json["conversation_id"]).status == 200

    def test_a_database_that_sleeps_is_waited_for(self, alice: Person, wire: Proxy) -> None:
        """Connecting takes a while; the person sees an ordinary answer."""
        wire.connect_delay = 1.5
        try:
            assert alice.say("add buy milk").status == 200
        finally:
            wire.connect_delay = 0

    @pytest.mark.parametrize("delay", [0.7, 1.5, 4.0])
    def test_a_database_that_dawdles_does_not_hold_the_answer_up(
        self, alice: Person, wire: Proxy, rows: Rows, delay: float
    ) -> None:
        """However slowly it answers, the person is answered before Lambda's time is up; later all is done once."""
        budget = 8.0
        assert alice.say("what is left?").status == 200
        wire.answer_delay = delay
        try:
            began = time.monotonic()
            answer = alice.say(DO, key="k", seconds=budget)
            took = time.monotonic() - began
        finally:
            wire.answer_delay = 0
        assert answer.status in (503, 504)
        assert took < budget
        let_leases_run_out(rows, alice)
        assert alice.say(DO, key="k").status == 200
        done = rows.execute("select title, completed from task where user_id = %s order by id", [alice.id]).fetchall()
        assert [(row["title"], row["completed"]) for row in done] == [("buy milk", True), ("call mum", False)]


@dataclass
class Cuts:
    """A wire that is cut again and again, and what must be true after each cut."""

    wire: Proxy
    rows: Rows
    logs: Logs
    issuer: Issuer
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)

    def places(self, measure: Callable[[Person], Any]) -> Iterator[tuple[str, int]]:
        """Bytes to cut after, on both sides, anywhere in what `measure` does over a connection that is there."""
        measure(self._person())
        self.wire.reset()
        measure(self._person())
        for side, most in (("cut_saying", self.wire.said), ("cut_hearing", self.wire.heard)):
            for place in sorted(self.chance.sample(range(most), CUTS)):
                yield side, place

    def prepare(self, side: str, place: int) -> tuple[Person, float]:
        """Set the trap for somebody new; give them, and for how long the database is away then."""
        truth.settle(self.rows)
        self.wire.light()
        for database in databases():
            database.close()
        if self.chance.random() < COLD:  # the connection is made while the wire is about to be cut
            self.counts["cold"] += 1
        else:
            for database in databases():
                database.get_ready(())
        self.wire.reset()
        self.wire.dark = self.chance.choice([0.0, 0.0, 0.2])
        setattr(self.wire, side, place)
        self.counts["cuts"] += 1
        return self._person(), self.wire.dark

    def check(self, person: Person, mark: int) -> None:
        """Each effect has its record, and each record its line among those since the mark."""
        truth.settle(self.rows)
        kept = self.rows.execute(
            "select tool, outcome, result from tool_call where user_id = %s order by turn_id, position", [person.id]
        ).fetchall()
        wanted = {"add_task": "insert", "complete_task": "update"}
        effects = [f"{wanted[row['tool']]} {row['result']['title']}" for row in kept if _has_effect(row)]
        assert truth.effects(self.rows, person.id) == effects
        check_told(self.rows, lines_of_calls(self.logs)[mark:], person)

    def mark(self) -> int:
        """Where the log is now."""
        return len(lines_of_calls(self.logs))

    def _person(self) -> Person:
        return Person(uuid4().hex, self.issuer)


def _has_effect(row: dict[str, Any]) -> bool:
    return bool(row["outcome"] == "ok" and row["tool"] != "list_tasks")


class TestAWireThatIsCutAtAnyByte:
    """To Postgres or to the pooler, in either direction: nothing is done twice, lost or misreported."""

    @pytest.fixture(scope="class", params=["direct", "pooled"])
    @classmethod
    def target(cls, request: pytest.FixtureRequest, server: Postgres) -> str:
        """What is at the far end of the wire."""
        if request.param == "direct":
            return server.app_url
        pooler: PgBouncer = request.getfixturevalue("pooler")
        return pooler.url(server.app_url)

    @pytest.fixture(scope="class")
    @classmethod
    def wire(cls, target: str) -> Iterator[Proxy]:
        """The wire."""
        with proxy.running(target) as running:
            yield running

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, wire: Proxy, target: str) -> str:
        """The runtime role's URL through it."""
        return wire.url(target)

    @pytest.fixture
    def cuts(self, wire: Proxy, rows: Rows, logs: Logs, issuer: Issuer) -> Iterator[Cuts]:
        """The wire and what is known beside it."""
        with truth.watched(rows):
            yield Cuts(wire, rows, logs, issuer, random.Random(SEED))  # noqa: S311
        wire.light()
        wire.reset()

    def test_a_turn_happens_once(self, cuts: Cuts, tell: Tell, request: pytest.FixtureRequest) -> None:
        """Its answer is true, or silent where nobody can know; with its key it is finished at once, and replayed."""
        for side, place in list(cuts.places(lambda person: person.say(DO))):
            person, dark = cuts.prepare(side, place)
            try:
                self._turn(cuts, person)
            except AssertionError as error:
                raise AssertionError(f"{side} {place}, dark for {dark} s, CUT_SEED={SEED}: {error}") from error
        counts = ", ".join(f"{number} {what}" for what, number in sorted(cuts.counts.items()))
        tell(f"Turns over a wire cut at any byte ({request.node.callspec.id}): {counts} (CUT_SEED={SEED})")

    def _turn(self, cuts: Cuts, person: Person) -> None:
        mark = cuts.mark()
        first = person.say(DO, key="k")
        cuts.counts[f"answered {first.status}"] += 1
        cuts.check(person, mark)
        self._check_first(cuts, person, first)
        cuts.wire.light()  # as it is when the person has waited for as long as Retry-After says
        second = person.say(DO, key="k")
        assert second.status == 200, f"first {first.body}, then {second.body}"
        truth.check_turn(cuts.rows, person.id, DO, second)
        assert sorted(truth.effects(cuts.rows, person.id)) == EFFECTS  # a call made once more may come after another
        assert (person.say(DO, key="k").body, cuts.wire.lost) == (second.body, 1)
        cuts.check(person, mark)

    def _check_first(self, cuts: Cuts, person: Person, first: Response) -> None:
        """What it says of calls is what is recorded, exactly."""
        if first.status == 200:
            return truth.check_turn(cuts.rows, person.id, DO, first)
        assert first.status == 503, first.body
        recorded = truth.calls(cuts.rows, person.id, str(turn_id_for(person.id, "k")))
        told = first.json.get("tool_calls", recorded)
        assert json.dumps(told, sort_keys=True) == json.dumps(recorded, sort_keys=True)
        return None

    def test_an_mcp_call_is_told_as_it_was(self, cuts: Cuts, tell: Tell, request: pytest.FixtureRequest) -> None:
        """Done and told so, not done and told so, or told that nobody can know."""
        add = {"name": "add_task", "arguments": {"title": "buy milk"}}
        for side, place in list(cuts.places(lambda person: McpClient(person.mcp_token).request("tools/call", **add))):
            person, dark = cuts.prepare(side, place)
            mark = cuts.mark()
            answer = McpClient(person.mcp_token).request("tools/call", **add)
            try:
                self._check_call(cuts, person, answer)
                cuts.check(person, mark)
            except AssertionError as error:
                raise AssertionError(f"{side} {place}, dark for {dark} s, CUT_SEED={SEED}: {error}") from error
        counts = ", ".join(f"{number} {what}" for what, number in sorted(cuts.counts.items()))
        tell(f"MCP calls over a wire cut at any byte ({request.node.callspec.id}): {counts} (CUT_SEED={SEED})")

    def _check_call(self, cuts: Cuts, person: Person, answer: Response) -> None:
        result = answer.json["result"]
        text = result["content"][0]["text"]
        done = [("buy milk", False)] == truth.tasks(cuts.rows, person.id)
        cuts.counts["told as failed" if result.get("isError") else "told as done"] += 1
        if "may have been done" not in text:
            assert done is not result.get("isError", False), text


class TestThroughThePooler:
    """Behind PgBouncer."""

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, pooler: PgBouncer, server: Postgres) -> str:
        """The runtime role's URL through it."""
        return pooler.url(server.app_url)

    def test_down_when_the_request_comes(self, alice: Person, pooler: PgBouncer, rows: Rows) -> None:
        """503 with a time to come back, and nothing is stored; afterwards all is well."""
        pooler.stop()
        try:
            answer = alice.say("add buy milk", key="k")
        finally:
            pooler.restart()
        assert (answer.status, answer.json["type"]) == (503, "urn:taskchat:problem:database-unavailable")
        assert answer.headers["retry-after"]
        assert rows.execute("select from message where user_id = %s", [alice.id]).fetchall() == []
        assert alice.say("add buy milk", key="k").status == 200

    def test_a_pooler_that_restarts_between_two_turns_is_not_noticed(self, alice: Person, pooler: PgBouncer) -> None:
        """The connection of the warm environment is dead; the second turn is an ordinary one."""
        first = alice.say("add buy milk").json
        pooler.restart()
        assert alice.say("what is left?", first["conversation_id"]).status == 200

    def test_a_pooler_that_restarts_while_the_model_thinks_is_not_noticed(
        self, alice: Person, pooler: PgBouncer, rows: Rows
    ) -> None:
        """Between two steps of a turn no connection is held, so there is none to lose."""
        from chat.model import ModelClient

        real = ModelClient.ask

        async def restart_first(client: ModelClient, *arguments: Any) -> Any:
            pooler.restart()
            return await real(client, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ModelClient, "ask", restart_first)
            answer = alice.say(DO)
        assert answer.status == 200
        check_done_once(alice, rows, answer.json)


def test_the_server_goes_away_before_any_statement(alice: Person, rows: Rows) -> None:
    """At each statement of a turn in its place: the answer is an honest one, and the retry finds it done once."""
    from chat.app import process

    statuses = []
    for nth in range(1, 60):
        person = Person(f"{alice.id[:20]}{nth}", alice.issuer)
        forget()
        statements = 0

        def cut(*_: Any, nth: int = nth) -> None:
            nonlocal statements
            statements += 1
            if statements == nth:
                rows.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'taskchat_app'"
                )

        event.listen(process.database.engine, "before_cursor_execute", cut)
        answer = person.say(DO, key="k")
        if statements < nth:
            break
        statuses.append(answer.status)
        let_leases_run_out(rows, person)
        check_done_once(person, rows, person.say(DO, key="k").json)
    assert statements < nth, "the turn has more statements than were tried"
    assert set(statuses) == {200, 503}
