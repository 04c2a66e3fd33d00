"""Test docs/failures.md row by row: the status of a failing model, the text for the caller, and the rows that stay."""

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.standin_model.failures import FAULTS
from testing.gateway import event, invoke
from tests import raw_provider
from tests.conftest import ROOT, Logs, Person, reset_processes
from tests.domain import example
from tests.raw_provider import SHAPES, RawProvider, Script, Shape, good_answer, head

Rows = psycopg.Connection[dict[str, Any]]
ADD = example.add("buy milk")
CELL = r"([^|]+)"
ROW = re.compile(rf"\| {CELL} \| `(\w+)`( once)? \| (\d+) \| {CELL} \| {CELL} \|")
NO_FAILURES = {"slow", "say", "call", "preamble", "many_messages", "split_surrogates", "split_blanks", "drip"}
"""Faults that are no failures: with them a test chooses the model's answer."""

STREAM_FAILURES = {"pause", "break_off", "cut_stream"}
"""Faults of streamed answers. The table is about requests for JSON, whose answers are not streamed."""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    what: str
    fault: str
    once: bool
    status: int
    stored: list[str]
    text: str

    def set(self, standin: StandIn) -> None:
        """Make the model fail in this way: once, or more often than any call is tried."""
        standin.fault(self.fault, match=ADD, times=1 if self.once else None)


def rows_of_the_table() -> list[Row]:
    """Return the table of the document."""
    text = (ROOT / "docs/failures.md").read_text().split("## The database")[0]
    return [
        Row(what, fault, bool(once), int(status), stored.split(", "), shown)
        for what, fault, once, status, stored, shown in ROW.findall(text)
    ]


TABLE = rows_of_the_table()
every_row = pytest.mark.parametrize("row", TABLE, ids=[re.sub(r"\W+", "-", row.what) for row in TABLE])
both_apis = pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)

ANY_TEXT = "the refusal, as it is"


@pytest.fixture(scope="session")
def database_url(server: Postgres, pooler: PgBouncer) -> str:
    """Return the pooler's URL, as in production: only the model fails here."""
    return pooler.url(server.app_url)


def stored_for(person: Person, rows: Rows) -> list[str]:
    """Return the rows in Postgres of a user's only turn, by their names in the table."""
    both = (
        "select role as kind from message where user_id = %s union all select outcome from tool_call where user_id = %s"
    )
    kinds = Counter(row["kind"] for row in rows.execute(both, [person.id, person.id]))
    assert (kinds["user"], kinds["assistant"] <= 1) == (1, True)
    names = {"user": "message", "error": "failed call", "ok": "call", "assistant": "reply"}
    return [name for kind, name in names.items() if kinds[kind]]


@both_apis
@every_row
def test_each_row_of_the_table_holds(alice: Person, standin: StandIn, rows: Rows, row: Row) -> None:
    """Status, text and stored rows are those of the row, on both APIs."""
    row.set(standin)
    answer = alice.say(ADD, seconds=2.5 if row.fault == "hang" else 30)
    assert answer.status == row.status
    text = answer.json.get("response") or f"{answer.json['title']} {answer.json.get('detail', '')}"
    assert row.text == ANY_TEXT or row.text.split(" (")[0] in text
    assert stored_for(alice, rows) == row.stored


@every_row
def test_the_turn_can_be_resumed(alice: Person, standin: StandIn, rows: Rows, row: Row) -> None:
    """When the model is healthy, the same key gives the reply. Message and effect are there once."""
    row.set(standin)
    alice.say(ADD, key="k", seconds=2.5 if row.fault == "hang" else 30)
    standin.reset()
    again = alice.say(ADD, key="k")
    assert again.status == 200
    stored = rows.execute("select role from message where user_id = %s order by position", [alice.id]).fetchall()
    assert [row["role"] for row in stored] == ["user", "assistant"]
    things = example.rows_of(rows, alice.id)
    assert len(things) <= 1
    assert len(things) == 1 or row.fault == "refusal"


@every_row
def test_the_next_message_is_answered(alice: Person, standin: StandIn, row: Row) -> None:
    """The conversation continues, and its history is whole."""
    row.set(standin)
    first = alice.say(ADD, seconds=2.5 if row.fault == "hang" else 30).json
    standin.reset()
    assert alice.say(example.show(), first["conversation_id"]).status == 200


def test_every_fault_of_the_stand_in_is_in_the_table() -> None:
    """The table holds each fault that the stand-in model has."""
    assert {row.fault for row in TABLE} == set(FAULTS) - NO_FAILURES - STREAM_FAILURES


def test_a_rate_limit_s_time_is_passed_on(alice: Person, standin: StandIn) -> None:
    """The provider asks for more time than the request has. The caller gets it as Retry-After, at once."""
    standin.fault("rate_limit", match=ADD, times=None, retry_after=50)
    answer = alice.say(ADD)
    assert (answer.status, answer.headers["retry-after"]) == (502, "50")
    assert len(standin.requests()) == 1


def test_the_calls_that_took_effect_are_returned(alice: Person, standin: StandIn, rows: Rows) -> None:
    """A model that fails after its tool ran gives 502 with ids and the call, which is also on record."""
    standin.fault("server_error", match=ADD, times=None, after_calls=1)
    answer = alice.say(ADD, key="k")
    assert answer.status == 502
    (call,) = answer.json["tool_calls"]
    assert (call["tool"], call["outcome"]) == (example.add_tool, "ok")
    standin.reset()
    again = alice.say(ADD, key="k").json
    assert again["tool_calls"] == [call]
    assert (again["conversation_id"], again["turn_id"]) == (answer.json["conversation_id"], answer.json["turn_id"])
    assert len(example.rows_of(rows, alice.id)) == 1


class TestFallback:
    """MODEL_FALLBACK is tried once when the first model is down."""

    @pytest.fixture(autouse=True)
    def fallback(self, monkeypatch: pytest.MonkeyPatch, environment: None) -> None:
        """Name another model at the same address."""
        monkeypatch.setenv("MODEL_FALLBACK", "second-choice")
        reset_processes()

    @both_apis
    @pytest.mark.parametrize("fault", ["server_error", "unavailable", "disconnect", "rate_limit", "malformed_body"])
    def test_it_answers_when_the_first_does_not(self, alice: Person, standin: StandIn, fault: str) -> None:
        """It is asked after the first model's tries are used up, on both APIs."""
        standin.fault(fault, match=ADD, times=3)
        assert alice.say(ADD).status == 200
        assert [r["body"]["model"] for r in standin.requests()][:4] == ["stand-in"] * 3 + ["second-choice"]

    def test_it_is_tried_once(self, alice: Person, standin: StandIn) -> None:
        """When it is down too, the turn fails."""
        standin.fault("server_error", match=ADD, times=None)
        assert alice.say(ADD).status == 502
        assert [r["body"]["model"] for r in standin.requests()] == ["stand-in"] * 3 + ["second-choice"]

    def test_it_gets_no_invalid_request(self, alice: Person, standin: StandIn) -> None:
        """The second model does not get a request that the first one refuses."""
        standin.fault("context_length_exceeded", match=ADD, times=None)
        assert alice.say(ADD).status == 502
        assert len(standin.requests()) == 1

    def test_it_has_time_when_the_first_hangs(self, alice: Person, standin: StandIn) -> None:
        """The fallback has half of the time."""
        standin.fault("hang", match=ADD, seconds=40)
        assert alice.say(ADD, seconds=4).status == 200


class TestSlowFirstModel:
    """The fallback has its own time when the first model sends its answer in small parts."""

    @pytest.fixture
    def provider(self, environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawProvider]:
        """Serve the provider of both models."""
        with raw_provider.running() as running:
            monkeypatch.setenv("OPENAI_BASE_URL", running.url)
            monkeypatch.setenv("MODEL_FALLBACK", "second-choice")
            reset_processes()
            yield running

    @both_apis
    @pytest.mark.parametrize("what", ["a dripped body", "a dripped head", "a dripped error", "chunks of a byte"])
    def test_a_slow_answer_leaves_the_fallback_its_time(self, alice: Person, provider: RawProvider, what: str) -> None:
        """The first model's share bounds its whole exchange."""
        provider.shapes = [SHAPES[what], good_answer]
        assert alice.say(ADD, seconds=4).status == 200
        assert [body["model"] for body in provider.requests] == ["stand-in", "second-choice"]

    @both_apis
    def test_several_tries_leave_the_fallback_its_time(self, alice: Person, provider: RawProvider) -> None:
        """All tries share half of the time. They do not get half of the rest each."""
        received_at: list[float] = []

        def marked(shape: Shape) -> Shape:
            def answer(api: str) -> Script:
                received_at.append(time.monotonic())
                yield from shape(api)

            return answer

        def late(api: str) -> Script:
            yield head(500)
            yield 0.8
            yield b"0\r\n\r\n"

        provider.shapes = [marked(late), marked(SHAPES["a dripped body"]), marked(good_answer)]
        began = time.monotonic()
        assert alice.say(ADD, seconds=5.5).status == 200
        assert [body["model"] for body in provider.requests] == ["stand-in"] * 2 + ["second-choice"]
        assert received_at[-1] - began < 3, "half of 4 s, and what the turn itself takes"

    def test_a_slow_answer_is_charged(self, alice: Person, provider: RawProvider, logs: Logs) -> None:
        """A model that ran out of time may cost tokens, like one that hangs."""
        provider.shapes = [SHAPES["a dripped body"], good_answer]
        assert alice.say(ADD, seconds=4).status == 200
        (line,) = [line for line in logs() if line["message"] == "turn finished"]
        assert (line["model"], line["requests"]) == ("second-choice", 1)
        assert line["estimated_tokens"] > 500

    @both_apis
    def test_without_a_fallback_the_deadline_ends_it(
        self, alice: Person, provider: RawProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The answer is 504, as for a model that hangs."""
        monkeypatch.delenv("MODEL_FALLBACK")
        reset_processes()
        provider.shapes = [SHAPES["a dripped body"]]
        assert alice.say(ADD, key="k", seconds=3).status == 504
        provider.shapes = [good_answer]
        assert alice.say(ADD, key="k").status == 200


class TestDeadline:
    """The whole request has a deadline."""

    def test_a_model_that_hangs_is_given_up(self, alice: Person, standin: StandIn) -> None:
        """The answer is 504 with the turn's ids, and a request with its key finishes the turn."""
        standin.fault("hang", match=ADD, seconds=40)
        answer = alice.say(ADD, key="k", seconds=3)
        assert answer.status == 504
        assert set(answer.json) >= {"conversation_id", "turn_id", "tool_calls"}
        assert alice.say(ADD, key="k").status == 200

    def test_no_tool_starts_past_it(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """A model that answers too late changes nothing."""
        standin.fault("slow", match=ADD, seconds=3)
        assert alice.say(ADD, seconds=2.5).status == 504
        assert example.rows_of(rows, alice.id) == []

    def test_a_turn_without_time_does_not_begin(self, alice: Person) -> None:
        """An invocation with next to no time left answers 504."""
        assert alice.say(ADD, seconds=0.2).status == 504

    def test_a_pause_for_the_model_s_limit_is_within_it(self, alice: Person, standin: StandIn) -> None:
        """A pause that is longer than the time left is not begun."""
        standin.fault("rate_limit", match=ADD, times=None, retry_after=3)
        assert alice.say(ADD, seconds=3).status == 502


def test_a_reply_that_cannot_be_stored_is_cleaned(alice: Person, standin: StandIn, rows: Rows) -> None:
    """NUL and lone surrogates in the model's text are U+FFFD in the answer and in Postgres."""
    standin.fault("bad_text", match="hello")
    answer = alice.say("hello")
    assert answer.status == 200
    assert "\ufffd" in answer.json["response"]
    kept = rows.execute("select content from message where user_id = %s and role = 'assistant'", [alice.id]).fetchone()
    assert kept == {"content": answer.json["response"]}


def test_failures_are_logged_without_text(alice: Person, standin: StandIn, logs: Logs) -> None:
    """An operator reads the kind of fault, and no log line holds the user's text."""
    standin.fault("server_error", match="zanzibarquux", times=None)
    alice.say(example.add("zanzibarquux"))
    written = logs()
    assert [line["reason"] for line in written if line["message"] == "model failed"] == ["InternalServerError 500 None"]
    assert "quux" not in str(written)


def test_time_before_the_function_began_counts(alice: Person, standin: StandIn) -> None:
    """A request that waited 27 s for a cold start has no time left, although Lambda would give it more."""
    from chat.app import handler

    standin.fault("hang", match=ADD, seconds=40)
    sent = {"authorization": f"Bearer {alice.token}", "content-type": "application/json"}
    late = event("POST", f"/api/{alice.id}/chat", headers=sent, body=json.dumps({"message": ADD}).encode())
    late["requestContext"]["timeEpoch"] = int((time.time() - 27) * 1000)
    assert invoke(handler, late, seconds=29).status == 504


def test_a_model_address_that_accepts_no_connection_fails_within_its_time(
    alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gives a connection five seconds. A deadline would answer 504 instead."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        with socket.create_connection(silent.getsockname()):  # it fills the queue: the kernel answers no other
            monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
            reset_processes()
            answer = alice.say(ADD)
    assert (answer.status, answer.json["detail"]) == (502, "The model cannot be reached.")
