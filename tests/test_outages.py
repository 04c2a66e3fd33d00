"""Postgres is down, fails, comes back or sleeps: the client gets a true answer, and nothing happens twice."""

import itertools
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
from testing.gateway import Response
from tests import db_assertions, proxy
from tests.conftest import Logs, Person, databases, reset_processes
from tests.domain import example
from tests.proxy import Proxy, ThroughAProxy
from tests.test_mcp_endpoint import McpClient

Rows = psycopg.Connection[dict[str, Any]]
Report = Callable[[str], None]
MESSAGE = example.add("buy milk", "call mum").then(example.change("buy milk"))
ADD, CALL = example.add("buy milk"), example.call_add("buy milk")
COMMITS = range(1, 7)
"""The commits of that turn: its begin, four tool calls, its reply."""
LONG_OUTAGE = 9.0
"""Seconds of an outage that outlasts every retry of a request with less time."""
CUTS = 75 if "THOROUGH" in os.environ else 12
"""Places at which the proxy cuts the connection, for each direction and target."""
COLD = 0.15
"""Share of requests that arrive before the connection is open."""
SEED = int(os.environ.get("CUT_SEED") or random.SystemRandom().randrange(10**6))


def audit_lines(logs: Logs) -> list[dict[str, Any]]:
    """Return the audit lines since the test began."""
    return [line for line in logs() if line["message"] == "tool call"]


def check_audit_lines(rows: Rows, lines: list[dict[str, Any]], person: Person) -> None:
    """Check that each recorded call has an audit line, whose last one has the call's outcome or "unknown"."""
    logged = {line["call_id"]: line["outcome"] for line in lines}
    kept = rows.execute("select call_id, outcome from tool_call where user_id = %s", [person.id]).fetchall()
    for row in kept:
        assert logged.get(row["call_id"]) in (row["outcome"], "unknown"), (row, lines)


def check_done_once(person: Person, rows: Rows, answer: Any) -> None:
    """Check for one message, one reply, the two rows, and one record for each call of the answer."""
    said = rows.execute("select role from message where user_id = %s order by position", [person.id]).fetchall()
    calls = rows.execute("select call_id from tool_call where user_id = %s order by position", [person.id]).fetchall()
    assert [row["role"] for row in said] == ["user", "assistant"]
    assert example.rows_of(rows, person.id) == [example.row("buy milk", changed=True), example.row("call mum")]
    assert [row["call_id"] for row in calls] == [call["call_id"] for call in answer["tool_calls"]]


@contextmanager
def when_logged(message: str, do: Callable[[], None]) -> Iterator[None]:
    """Call `do` when the program logs this message."""
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


def before_commit(nth: int, do: Callable[[], None]) -> None:
    """Call `do` before the program sends the nth commit from now."""
    commits = itertools.count(1)

    def count(_connection: Any) -> None:
        if next(commits) == nth:
            do()

    for database in databases():
        event.listen(database.engine, "commit", count)


class TestThroughAProxy(ThroughAProxy):
    """A proxy between program and Postgres loses answers, cuts connections or delays."""

    def lose_commit(self, proxy: Proxy, nth: int, outage: float = 0.0) -> None:
        """Lose the answer to the nth commit from now, and then refuse connections for a while."""

        def lose() -> None:
            proxy.lose_answer_to, proxy.refuse_for = b"commit", outage

        before_commit(nth, lose)

    @pytest.mark.parametrize("outage", [0.0, 0.3])
    @pytest.mark.parametrize("nth", COMMITS)
    def test_a_lost_commit_is_settled_once(
        self, alice: Person, proxy: Proxy, rows: Rows, logs: Logs, nth: int, outage: float
    ) -> None:
        """The program reads the state after any lost commit, also when Postgres is down for a moment, and continues."""
        self.lose_commit(proxy, nth, outage)
        answer = alice.say(MESSAGE, key="k")
        assert (proxy.lost, answer.status) == (1, 200), answer.body
        check_done_once(alice, rows, answer.json)
        check_audit_lines(rows, audit_lines(logs), alice)
        assert {line["outcome"] for line in audit_lines(logs)} == {"ok"}
        assert alice.say(MESSAGE, key="k").body == answer.body

    @pytest.mark.parametrize("nth", [1, 2, 4, 6])
    def test_a_lost_commit_before_a_long_outage_gives_a_true_503(
        self, alice: Person, proxy: Proxy, rows: Rows, logs: Logs, nth: int
    ) -> None:
        """The answer says nothing that may be untrue. A later retry finds or does everything once."""
        self.lose_commit(proxy, nth, LONG_OUTAGE)
        first = alice.say(MESSAGE, key="k", seconds=8)
        assert (proxy.lost, first.status) == (1, 503)
        assert first.headers["retry-after"]
        recorded = db_assertions.calls(rows, alice.id, str(turn_id_for(alice.id, "k")))
        if 1 < nth < len(COMMITS):  # the call took effect, and the program could not know
            assert first.json.keys() >= {"conversation_id", "turn_id"}
            assert "tool_calls" not in first.json
            assert [line["outcome"] for line in audit_lines(logs)] == ["ok"] * (nth - 2) + ["unknown"]
        else:
            assert first.json.get("tool_calls", []) == recorded
        check_audit_lines(rows, audit_lines(logs), alice)
        proxy.accept_again()
        db_assertions.let_leases_run_out(rows, alice.id)
        check_done_once(alice, rows, alice.say(MESSAGE, key="k").json)

    def test_a_call_settled_at_the_end_of_the_turn_is_in_the_answer(
        self, alice: Person, proxy: Proxy, rows: Rows, logs: Logs
    ) -> None:
        """Postgres comes back when the turn ends, and the last transaction reads which calls took effect."""
        self.lose_commit(proxy, 3, LONG_OUTAGE)
        with when_logged("turn interrupted", proxy.accept_again):
            answer = alice.say(MESSAGE, key="k")
        assert (proxy.lost, answer.status) == (1, 503)
        recorded = db_assertions.calls(rows, alice.id, answer.json["turn_id"])
        assert [call["tool"] for call in recorded] == MESSAGE.tools[:2]
        assert json.dumps(answer.json["tool_calls"], sort_keys=True) == json.dumps(recorded, sort_keys=True)
        lines = [(line["call_id"], line["outcome"]) for line in audit_lines(logs)]
        first, second = (call["call_id"] for call in recorded)
        assert lines == [(first, "ok"), (second, "unknown"), (second, "ok")]
        check_done_once(alice, rows, alice.say(MESSAGE, key="k").json)

    def test_a_call_whose_commit_did_not_arrive_is_recorded_as_failed(
        self, alice: Person, proxy: Proxy, rows: Rows, logs: Logs
    ) -> None:
        """The failed call keeps its position, and the model makes the call once more."""

        def cut() -> None:
            proxy.cut_sent = proxy.sent + 3

        before_commit(2, cut)
        answer = alice.say(ADD, key="k")
        assert (proxy.lost, answer.status) == (1, 200)
        db_assertions.check_turn(rows, alice.id, ADD, answer)
        assert [call["outcome"] for call in answer.json["tool_calls"]] == ["error", "ok"]
        assert "Nothing was changed" in answer.json["tool_calls"][0]["result"]["error"]
        assert [line["outcome"] for line in audit_lines(logs)] == ["error", "ok"]
        assert example.rows_of(rows, alice.id) == [example.row("buy milk")]

    @pytest.mark.parametrize("outage", [0.0, 0.3])
    def test_a_lost_commit_of_a_failed_call_is_settled_once(
        self, alice: Person, proxy: Proxy, rows: Rows, logs: Logs, outage: float
    ) -> None:
        """The program reads the record of a failed call in the same way, and the turn continues."""
        self.lose_commit(proxy, 2, outage)
        answer = alice.say(message := example.fail().then(ADD), key="k")
        assert (proxy.lost, answer.status) == (1, 200)
        db_assertions.check_turn(rows, alice.id, message, answer)
        assert [call["outcome"] for call in answer.json["tool_calls"]] == ["error", "ok"]
        check_audit_lines(rows, audit_lines(logs), alice)

    @pytest.mark.parametrize("outage", [0.0, 0.3])
    def test_a_lost_commit_of_an_mcp_call_is_settled_once(
        self, alice: Person, proxy: Proxy, rows: Rows, logs: Logs, outage: float
    ) -> None:
        """The client gets the true result, so it has nothing to repeat."""
        self.lose_commit(proxy, 1, outage)
        result = McpClient(alice.mcp_token).call(example.add_tool, **CALL["arguments"])
        assert (proxy.lost, result.get("isError", False)) == (1, False), result
        assert result["structuredContent"][example.text] == "buy milk"
        assert example.rows_of(rows, alice.id) == [example.row("buy milk")]
        assert [line["outcome"] for line in audit_lines(logs)] == ["ok"]

    def test_a_lost_commit_of_an_mcp_call_before_a_long_outage_is_reported_as_unknown(
        self, alice: Person, proxy: Proxy, rows: Rows, logs: Logs
    ) -> None:
        """The client reads that the call may have been done, and the audit line has the outcome "unknown"."""
        self.lose_commit(proxy, 1, LONG_OUTAGE)
        answer = McpClient(alice.mcp_token).request("tools/call", **CALL, seconds=8)
        result = answer.json["result"]
        assert (proxy.lost, result["isError"]) == (1, True)
        assert "may have been done" in result["content"][0]["text"]
        assert [line["outcome"] for line in audit_lines(logs)] == ["unknown"]
        check_audit_lines(rows, audit_lines(logs), alice)

    def test_a_failed_mcp_call_stays_failed_when_its_commit_is_lost(
        self, alice: Person, proxy: Proxy, logs: Logs
    ) -> None:
        """The failure is certain, with or without its record."""
        self.lose_commit(proxy, 1, LONG_OUTAGE)
        answer = McpClient(alice.mcp_token).request("tools/call", **example.call_add(""), seconds=8)
        assert proxy.lost == 1
        assert answer.json["result"]["content"][0]["text"].startswith(f"Invalid arguments: {example.text}")
        assert [line["outcome"] for line in audit_lines(logs)] == ["unknown"]

    def test_a_lost_commit_of_a_turns_begin_leaves_no_lease(self, alice: Person, proxy: Proxy, rows: Rows) -> None:
        """The conversation is free after the turn, and the turn took one request from the rate limit."""
        self.lose_commit(proxy, 1, 0.3)
        answer = alice.say(ADD, key="k")
        assert (proxy.lost, answer.status) == (1, 200)
        assert db_assertions.lease(rows, alice.id, answer.json["conversation_id"]) is None
        assert alice.say(example.show(), answer.json["conversation_id"]).status == 200

    def test_a_request_waits_for_a_sleeping_database(self, alice: Person, proxy: Proxy) -> None:
        """Connecting takes a while, and the client gets an ordinary answer."""
        proxy.connect_delay = 1.5
        try:
            assert alice.say(ADD).status == 200
        finally:
            proxy.connect_delay = 0

    @pytest.mark.parametrize("delay", [0.7, 1.5, 4.0])
    def test_a_slow_database_does_not_delay_the_answer_beyond_the_deadline(
        self, alice: Person, proxy: Proxy, rows: Rows, delay: float
    ) -> None:
        """The client gets an answer before Lambda's time is up, and a later retry does everything once."""
        budget = 8.0
        assert alice.say(example.show()).status == 200
        proxy.answer_delay = delay
        try:
            began = time.monotonic()
            answer = alice.say(MESSAGE, key="k", seconds=budget)
            took = time.monotonic() - began
        finally:
            proxy.answer_delay = 0
        assert answer.status in (503, 504)
        assert took < budget
        db_assertions.let_leases_run_out(rows, alice.id)
        assert alice.say(MESSAGE, key="k").status == 200
        assert example.rows_of(rows, alice.id) == [example.row("buy milk", changed=True), example.row("call mum")]


@dataclass
class Cuts:
    """Cut the connection again and again, and check the state after each cut."""

    proxy: Proxy
    rows: Rows
    logs: Logs
    issuer: Issuer
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)

    def places(self, measure: Callable[[Person], Any]) -> Iterator[tuple[str, int]]:
        """Yield bytes to cut after, in both directions, in what `measure` does over an open connection."""
        measure(self._person())
        self.proxy.reset()
        measure(self._person())
        for side, most in (("cut_sent", self.proxy.sent), ("cut_received", self.proxy.received)):
            for place in sorted(self.chance.sample(range(most), CUTS)):
                yield side, place

    def prepare(self, side: str, place: int) -> tuple[Person, float]:
        """Set a cut for a new user. Return the user, and the seconds of the outage after the cut."""
        db_assertions.settle(self.rows)
        self.proxy.accept_again()
        for database in databases():
            database.close()
        if self.chance.random() < COLD:  # the cut may come while the program connects
            self.counts["cold"] += 1
        else:
            for database in databases():
                database.prepare_statements(())
        self.proxy.reset()
        self.proxy.refuse_for = self.chance.choice([0.0, 0.0, 0.2])
        setattr(self.proxy, side, place)
        self.counts["cuts"] += 1
        return self._person(), self.proxy.refuse_for

    def check(self, person: Person, mark: int) -> None:
        """Check that each effect has its record, and each record its audit line among those after the mark."""
        db_assertions.settle(self.rows)
        kept = self.rows.execute(
            "select tool, outcome, result from tool_call where user_id = %s order by turn_id, position", [person.id]
        ).fetchall()
        kinds = {example.add_tool: "insert", example.change_tool: "update"}
        changes = [row for row in kept if row["outcome"] == "ok" and row["tool"] in kinds]
        effects = [f"{kinds[row['tool']]} {row['result'][example.text]}" for row in changes]
        assert db_assertions.effects(self.rows, person.id) == effects
        check_audit_lines(self.rows, audit_lines(self.logs)[mark:], person)

    def mark(self) -> int:
        """Return the number of audit lines so far."""
        return len(audit_lines(self.logs))

    def _person(self) -> Person:
        return Person(uuid4().hex, self.issuer)


class TestCutAtAnyByte:
    """A cut at any byte, to Postgres or to the pooler, repeats, loses and misreports nothing."""

    @pytest.fixture(scope="class", params=["direct", "pooled"])
    @classmethod
    def target(cls, request: pytest.FixtureRequest, server: Postgres) -> str:
        """Return the URL of the server behind the proxy."""
        if request.param == "direct":
            return server.app_url
        pooler: PgBouncer = request.getfixturevalue("pooler")
        return pooler.url(server.app_url)

    @pytest.fixture(scope="class")
    @classmethod
    def proxy(cls, target: str) -> Iterator[Proxy]:
        """Run the proxy."""
        with proxy.running(target) as running:
            yield running

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, proxy: Proxy, target: str) -> str:
        """Give the runtime role's URL through the proxy."""
        return proxy.url(target)

    @pytest.fixture
    def cuts(self, proxy: Proxy, rows: Rows, logs: Logs, issuer: Issuer) -> Iterator[Cuts]:
        """Provide the cuts, while Postgres records every effect by itself."""
        with db_assertions.watched(rows):
            yield Cuts(proxy, rows, logs, issuer, random.Random(SEED))  # noqa: S311
        proxy.accept_again()
        proxy.reset()

    def test_a_turn_happens_once(self, cuts: Cuts, report: Report, request: pytest.FixtureRequest) -> None:
        """Its answer is true, or leaves out what is unknown. Its key finishes it at once, and then replays it."""
        for side, place in list(cuts.places(lambda person: person.say(MESSAGE))):
            person, outage = cuts.prepare(side, place)
            try:
                self._turn(cuts, person)
            except AssertionError as error:
                raise AssertionError(f"{side} {place}, outage of {outage} s, CUT_SEED={SEED}: {error}") from error
        counts = ", ".join(f"{number} {what}" for what, number in sorted(cuts.counts.items()))
        report(f"Turns over a connection cut at any byte ({request.node.callspec.id}): {counts} (CUT_SEED={SEED})")

    def _turn(self, cuts: Cuts, person: Person) -> None:
        mark = cuts.mark()
        first = person.say(MESSAGE, key="k")
        cuts.counts[f"answered {first.status}"] += 1
        cuts.check(person, mark)
        self._check_first(cuts, person, first)
        cuts.proxy.accept_again()  # as after the wait that Retry-After asks for
        second = person.say(MESSAGE, key="k")
        assert second.status == 200, f"first {first.body}, then {second.body}"
        db_assertions.check_turn(cuts.rows, person.id, MESSAGE, second)
        assert (
            sorted(db_assertions.effects(cuts.rows, person.id)) == MESSAGE.effects
        )  # a repeated call may come after another
        assert (person.say(MESSAGE, key="k").body, cuts.proxy.lost) == (second.body, 1)
        cuts.check(person, mark)

    def _check_first(self, cuts: Cuts, person: Person, first: Response) -> None:
        """Check that the answer's calls are the recorded ones exactly."""
        if first.status == 200:
            return db_assertions.check_turn(cuts.rows, person.id, MESSAGE, first)
        assert first.status == 503, first.body
        recorded = db_assertions.calls(cuts.rows, person.id, str(turn_id_for(person.id, "k")))
        listed = first.json.get("tool_calls", recorded)
        assert json.dumps(listed, sort_keys=True) == json.dumps(recorded, sort_keys=True)
        return None

    def test_an_mcp_calls_outcome_is_reported_truly(
        self, cuts: Cuts, report: Report, request: pytest.FixtureRequest
    ) -> None:
        """The client reads that the call was done, that it failed, or that it may have been done."""
        for side, place in list(cuts.places(lambda person: McpClient(person.mcp_token).request("tools/call", **CALL))):
            person, outage = cuts.prepare(side, place)
            mark = cuts.mark()
            answer = McpClient(person.mcp_token).request("tools/call", **CALL)
            try:
                self._check_call(cuts, person, answer)
                cuts.check(person, mark)
            except AssertionError as error:
                raise AssertionError(f"{side} {place}, outage of {outage} s, CUT_SEED={SEED}: {error}") from error
        counts = ", ".join(f"{number} {what}" for what, number in sorted(cuts.counts.items()))
        report(f"MCP calls over a connection cut at any byte ({request.node.callspec.id}): {counts} (CUT_SEED={SEED})")

    def _check_call(self, cuts: Cuts, person: Person, answer: Response) -> None:
        result = answer.json["result"]
        text = result["content"][0]["text"]
        done = [example.row("buy milk")] == example.rows_of(cuts.rows, person.id)
        cuts.counts["reported as failed" if result.get("isError") else "reported as done"] += 1
        if "may have been done" not in text:
            assert done is not result.get("isError", False), text


class TestThroughThePooler:
    """PgBouncer stands between program and Postgres, and restarts."""

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, pooler: PgBouncer, server: Postgres) -> str:
        """Give the runtime role's URL through PgBouncer."""
        return pooler.url(server.app_url)

    def test_a_request_gets_a_503_while_the_pooler_is_down(self, alice: Person, pooler: PgBouncer, rows: Rows) -> None:
        """Retry-After says when to come back, nothing is stored, and the key works afterwards."""
        pooler.stop()
        try:
            answer = alice.say(ADD, key="k")
        finally:
            pooler.restart()
        assert (answer.status, answer.json["type"]) == (503, "urn:taskchat:problem:database-unavailable")
        assert answer.headers["retry-after"]
        assert rows.execute("select from message where user_id = %s", [alice.id]).fetchall() == []
        assert alice.say(ADD, key="k").status == 200

    def test_a_pooler_restart_between_two_turns_fails_no_request(self, alice: Person, pooler: PgBouncer) -> None:
        """The warm environment's connection is dead, and the second turn is an ordinary one."""
        first = alice.say(ADD).json
        pooler.restart()
        assert alice.say(example.show(), first["conversation_id"]).status == 200

    def test_a_pooler_restart_while_the_model_thinks_fails_no_request(
        self, alice: Person, pooler: PgBouncer, rows: Rows
    ) -> None:
        """A turn holds no connection between two steps, so it has none to lose."""
        from chat.model import ProviderModel

        real = ProviderModel.get_response

        async def restart_first(*arguments: Any, **named: Any) -> Any:
            pooler.restart()
            return await real(*arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProviderModel, "get_response", restart_first)
            answer = alice.say(MESSAGE)
        assert answer.status == 200
        check_done_once(alice, rows, answer.json)


def test_a_connection_lost_before_any_statement_repeats_nothing(alice: Person, rows: Rows) -> None:
    """At each statement of a turn: the answer is a 200 or a 503, and the retry finds everything done once."""
    from chat.app import process

    statuses = []
    for nth in range(1, 60):
        person = Person(f"{alice.id[:20]}{nth}", alice.issuer)
        reset_processes()
        statements = 0

        def terminate(*_: Any, nth: int = nth) -> None:
            nonlocal statements
            statements += 1
            if statements == nth:
                rows.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'taskchat_app'"
                )

        event.listen(process.database.engine, "before_cursor_execute", terminate)
        answer = person.say(MESSAGE, key="k")
        if statements < nth:
            break
        statuses.append(answer.status)
        db_assertions.let_leases_run_out(rows, person.id)
        check_done_once(person, rows, person.say(MESSAGE, key="k").json)
    assert statements < nth, "the turn has more statements than were tried"
    assert set(statuses) == {200, 503}
