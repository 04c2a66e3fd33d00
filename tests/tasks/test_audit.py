"""The audit line of a call of a task tool contains numbers and choices, which cannot carry a user's text."""

from tests.conftest import Logs, Person
from tests.test_audit import audit_lines


def test_numbers_and_choices_are_logged(alice: Person, logs: Logs) -> None:
    """An operator sees the task's id and the list's filter."""
    alice.say("finish 42")
    alice.say("what is left?")
    first, second = audit_lines(logs)
    assert first["tool_arguments"] == {"task_id": 42}
    assert second["tool_arguments"] == {"status": "pending"}
