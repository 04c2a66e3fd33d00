"""A tool call's audit line has one schema, and contains no text of a user."""

from typing import Any

import pytest

from dev.standin_model.client import StandIn
from tests.conftest import Logs, Person
from tests.domain import example
from tests.example_domain import ABSENT

ADD = example.add("buy milk")
FIELDS = {
    "schema": str,
    "request_id": str,
    "turn_id": str,
    "conversation_id": str,
    "actor": str,
    "door": str,
    "call_id": str,
    "tool": str,
    "tool_arguments": dict,
    "outcome": str,
    "duration_ms": float,
    "level": str,
    "message": str,
    "timestamp": str,
    "service": str,
    "cold_start": bool,
    "function_name": str,
    "function_request_id": str,
}


def audit_lines(logs: Logs) -> list[dict[str, Any]]:
    """Return the audit lines."""
    return [line for line in logs() if line["message"] == "tool call"]


def test_each_call_writes_one_line_of_the_schema(alice: Person, logs: Logs) -> None:
    """Every field of the schema is there, with its type."""
    alice.say(example.add("buy milk", "call mum"))
    lines = audit_lines(logs)
    assert len(lines) == 2
    for line in lines:
        assert line["schema"] == "taskchat.audit/1"
        assert {name for name, kind in FIELDS.items() if not isinstance(line[name], kind)} == set()


def test_the_line_names_the_turn_and_the_user(alice: Person, logs: Logs) -> None:
    """Its ids are those of the answer, and its actor is the token's subject."""
    answer = alice.say(ADD).json
    (line,) = audit_lines(logs)
    assert (line["actor"], line["door"], line["outcome"]) == (alice.id, "chat", "ok")
    assert (line["turn_id"], line["conversation_id"]) == (answer["turn_id"], answer["conversation_id"])
    assert (line["call_id"], line["duration_ms"]) == (
        answer["tool_calls"][0]["call_id"],
        answer["tool_calls"][0]["duration_ms"],
    )


def test_no_text_of_a_user_is_logged(alice: Person, logs: Logs, capfd: pytest.CaptureFixture[str]) -> None:
    """No stream gets the message, a row's text, a reply or a failed call's text."""
    answer = alice.say(example.add("zanzibarquux", "xylophonequux").then(example.change("quuxquux")))
    assert "zanzibarquux" in answer.body
    written = str(logs()) + "".join(capfd.readouterr())
    assert "quux" not in written


def test_numbers_and_choices_are_logged(alice: Person, logs: Logs) -> None:
    """An operator sees which row a call was for."""
    alice.say(example.fail())
    (line,) = audit_lines(logs)
    assert line["tool_arguments"] == {example.id_argument: ABSENT}


@pytest.mark.parametrize(
    "arguments",
    [
        {example.id_argument: "quux"},
        {"quux": 1},
        {example.id_argument: ["quux"]},
        {example.text: 5},
        {example.text: True},
    ],
)
def test_a_value_of_the_wrong_kind_is_not_logged(
    alice: Person, standin: StandIn, logs: Logs, arguments: dict[str, Any]
) -> None:
    """A model cannot put text into the log where a number belongs, or under an invented name."""
    calls = [
        {"name": name, "arguments": arguments} for name in (example.rename_tool, example.list_tool, "no_such_tool")
    ]
    standin.fault("call", calls=calls, match="hello")
    alice.say("hello")
    assert [line["tool_arguments"] for line in audit_lines(logs)] == [{}, {}, {}]


def test_lines_of_two_users_do_not_mix(alice: Person, bob: Person, logs: Logs) -> None:
    """In one warm environment, the second user's line has nothing of the first user's request."""
    alice.say(ADD)
    bob.say(example.add("feed cats"))
    first, second = audit_lines(logs)
    assert (first["actor"], second["actor"]) == (alice.id, bob.id)
    assert first["request_id"] != second["request_id"]
    assert alice.id not in str(second)


def test_a_request_writes_its_metrics(alice: Person, logs: Logs, capfd: pytest.CaptureFixture[str]) -> None:
    """The status of each answer is a metric."""
    alice.say(ADD)
    metrics = capfd.readouterr().out
    assert '"Status2xx"' in metrics
