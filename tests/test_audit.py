"""The audit line of a tool call: one schema, and nothing in it that a person wrote."""

from typing import Any

import pytest

from dev.standin_model.client import StandIn
from tests.conftest import Logs, Person

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
    """What was logged of tool calls."""
    return [line for line in logs() if line["message"] == "tool call"]


def test_each_call_writes_one_line_of_the_schema(alice: Person, logs: Logs) -> None:
    """Every field is there with its type, under the schema's name and version."""
    alice.say("add buy milk and call mum")
    lines = audit_lines(logs)
    assert len(lines) == 2
    for line in lines:
        assert line["schema"] == "taskchat.audit/1"
        assert {name for name, kind in FIELDS.items() if not isinstance(line[name], kind)} == set()


def test_the_line_leads_to_turn_and_person(alice: Person, logs: Logs) -> None:
    """Its ids are those of the answer, and its actor is the token's subject."""
    answer = alice.say("add buy milk").json
    (line,) = audit_lines(logs)
    assert (line["actor"], line["door"], line["outcome"]) == (alice.id, "chat", "ok")
    assert (line["turn_id"], line["conversation_id"]) == (answer["turn_id"], answer["conversation_id"])
    assert (line["call_id"], line["duration_ms"]) == (
        answer["tool_calls"][0]["call_id"],
        answer["tool_calls"][0]["duration_ms"],
    )


def test_no_word_of_a_person_is_logged(alice: Person, logs: Logs, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the message nor a title, a description, a reply or a failed call's text, on any stream."""
    answer = alice.say("add zanzibarquux with note: xylophonequux, then finish the zanzibarquux and finish quuxquux")
    assert "zanzibarquux" in answer.body
    said = str(logs()) + "".join(capfd.readouterr())
    assert "quux" not in said


def test_numbers_and_choices_are_logged(alice: Person, logs: Logs) -> None:
    """What cannot carry text is there: an operator sees which task was touched."""
    alice.say("finish 42")
    alice.say("what is left?")
    first, second = audit_lines(logs)
    assert first["tool_arguments"] == {"task_id": 42}
    assert second["tool_arguments"] == {"status": "pending"}


@pytest.mark.parametrize(
    "arguments",
    [{"task_id": "quux"}, {"status": "quux"}, {"quux": 1}, {"task_id": ["quux"]}, {"title": 5}, {"title": True}],
)
def test_a_value_of_the_wrong_kind_is_not_logged(
    alice: Person, standin: StandIn, logs: Logs, arguments: dict[str, Any]
) -> None:
    """A model that puts words where a number belongs, or under a name of its own, puts nothing into the log."""
    calls = [{"name": name, "arguments": arguments} for name in ("update_task", "list_tasks", "no_such_tool")]
    standin.fault("call", calls=calls, match="hello")
    alice.say("hello")
    assert [line["tool_arguments"] for line in audit_lines(logs)] == [{}, {}, {}]


def test_lines_of_two_people_do_not_mix(alice: Person, bob: Person, logs: Logs) -> None:
    """On one warm environment, nothing of the first person's request is on the second one's line."""
    alice.say("add buy milk")
    bob.say("add feed the cat")
    first, second = audit_lines(logs)
    assert (first["actor"], second["actor"]) == (alice.id, bob.id)
    assert first["request_id"] != second["request_id"]
    assert alice.id not in str(second)


def test_a_cold_start_is_counted_once(alice: Person, logs: Logs, capfd: pytest.CaptureFixture[str]) -> None:
    """The metric of the platform's own kind, and statuses beside it."""
    alice.say("add buy milk")
    metrics = capfd.readouterr().out
    assert '"Status2xx"' in metrics
