"""Test a turn, from the gateway's event to the rows in Postgres."""

import asyncio
from typing import Any, ClassVar
from uuid import uuid4

import httpx2
import pytest

from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.gateway import Response
from tests.conftest import Logs, Person, run
from tests.domain import example
from tests.example_domain import ABSENT, Rows

pytestmark = pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)


def test_a_message_is_done_answered_and_stored(alice: Person, rows: Rows) -> None:
    """Postgres holds the effect of the call, both messages and the call's record."""
    message = example.add("milk")
    answer = alice.say(message)
    assert answer.status == 200
    (call,) = answer.json["tool_calls"]
    asked = {"name": call["tool"], "arguments": call["arguments"]}
    assert (asked, call["outcome"]) == (example.call_add("milk"), "ok")
    assert call["result"][example.text] == "milk"
    assert example.rows_of(rows, alice.id) == [example.row("milk")]
    stored = rows.execute(
        "select role, content from message where user_id = %s order by position", [alice.id]
    ).fetchall()
    assert stored == [
        {"role": "user", "content": message},
        {"role": "assistant", "content": answer.json["response"]},
    ]


def test_the_first_turns_of_a_process_may_come_at_once(environment: None, issuer: Issuer, rows: Rows) -> None:
    """A developer's server has one process for all. No turn finds the agent half made."""
    from chat.app import app

    people = [Person(uuid4().hex, issuer) for _ in range(8)]

    async def send(client: httpx2.AsyncClient, person: Person) -> int:
        headers = {"authorization": f"Bearer {person.token}"}
        answer = await client.post(f"/api/{person.id}/chat", json={"message": example.add("milk")}, headers=headers)
        return int(answer.status_code)

    async def send_all() -> list[int]:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="https://api.example.com"
        ) as client:
            return await asyncio.gather(*(send(client, person) for person in people))

    assert run(send_all()) == [200] * len(people)
    assert [example.rows_of(rows, person.id) for person in people] == [[example.row("milk")]] * len(people)


def test_one_message_may_ask_for_several_things(alice: Person, rows: Rows) -> None:
    """The answer has all calls in their order. Two are of the same tool."""
    message = example.add("milk", "call mum").then(example.change("milk"))
    answer = alice.say(message)
    assert [call["tool"] for call in answer.json["tool_calls"]] == message.tools
    assert len({call["call_id"] for call in answer.json["tool_calls"]}) == 4
    assert example.rows_of(rows, alice.id) == [example.row("milk", changed=True), example.row("call mum")]


def test_calls_are_kept_in_order(alice: Person, rows: Rows) -> None:
    """The records of a turn are numbered in the order of the calls, and each has its conversation."""
    answer = alice.say(example.add("one", "two", "three")).json
    kept = rows.execute(
        "select call_id, conversation_id::text from tool_call where user_id = %s order by position", [alice.id]
    ).fetchall()
    assert [(row["call_id"], row["conversation_id"]) for row in kept] == [
        (call["call_id"], answer["conversation_id"]) for call in answer["tool_calls"]
    ]


def test_the_next_turn_reads_calls_and_results(alice: Person, standin: StandIn) -> None:
    """The model reads its earlier calls by id, each with its output."""
    message = example.add("milk")
    first = alice.say(message).json
    alice.say("What did I just say?", first["conversation_id"])
    shown = str(standin.requests(match="What did I just say?")[0]["body"])
    (call,) = first["tool_calls"]
    assert shown.count(call["call_id"]) >= 2
    assert message in shown
    assert str(call["result"]["id"]) in shown
    assert first["response"] in shown


def test_a_conversation_goes_on(alice: Person) -> None:
    """The second turn is in the first one's conversation and reads its message."""
    message = example.add("milk")
    first = alice.say(message).json
    second = alice.say("What did I just say?", first["conversation_id"]).json
    assert second["conversation_id"] == first["conversation_id"]
    assert second["turn_id"] != first["turn_id"]
    assert message in second["response"]


def test_a_failed_tool_is_reported_and_recorded(alice: Person, rows: Rows) -> None:
    """The model gets a plain sentence, the caller the failed call, and Postgres its record."""
    answer = alice.say(example.fail()).json
    (call,) = answer["tool_calls"]
    assert (call["outcome"], call["result"]) == ("error", {"error": example.absent})
    assert str(ABSENT) in answer["response"]
    kept = rows.execute("select outcome from tool_call where user_id = %s", [alice.id]).fetchall()
    assert kept == [{"outcome": "error"}]


@pytest.mark.parametrize("fault", ["malformed_arguments", "wrong_arguments", "extra_arguments", "unknown_tool"])
def test_a_wrong_call_of_the_model_is_recorded_too(alice: Person, standin: StandIn, rows: Rows, fault: str) -> None:
    """Its arguments are not JSON or break the schema, or the tool does not exist. It fails, and the turn continues."""
    message = example.add("milk")
    standin.fault(fault, match=message)
    answer = alice.say(message)
    assert answer.status == 200
    assert [call["outcome"] for call in answer.json["tool_calls"]].count("error") == 1
    kept = rows.execute("select outcome from tool_call where user_id = %s order by position", [alice.id]).fetchall()
    assert [row["outcome"] for row in kept] == [call["outcome"] for call in answer.json["tool_calls"]]


def test_calls_with_the_same_id_are_all_recorded(alice: Person, standin: StandIn, rows: Rows) -> None:
    """Two calls with one id in one answer are two calls, each with its own record."""
    message = example.add("milk", "call mum")
    standin.fault("duplicate_call_ids", match=message)
    answer = alice.say(message).json
    assert len({call["call_id"] for call in answer["tool_calls"]}) == 2
    assert example.rows_of(rows, alice.id) == [example.row("milk"), example.row("call mum")]


def test_the_provider_is_asked_to_store_nothing(alice: Person, standin: StandIn) -> None:
    """`store` is false in every request."""
    alice.say(example.add("milk"))
    assert [request["body"]["store"] for request in standin.requests()] == [False, False]


def test_usage_is_stored_with_the_reply(alice: Person, rows: Rows) -> None:
    """The reply's row has the model and the tokens of the turn."""
    alice.say(example.add("milk"))
    (row,) = rows.execute("select usage from message where user_id = %s and role = 'assistant'", [alice.id]).fetchall()
    assert row["usage"]["model"] == "stand-in"
    assert row["usage"]["requests"] == 2
    assert row["usage"]["input_tokens"] > row["usage"]["output_tokens"] > 0


def test_a_message_reaches_the_model_with_time_and_zone(alice: Person, standin: StandIn) -> None:
    """The model knows the user's local date."""
    alice.post({"message": "hello", "timezone": "Pacific/Auckland"})
    (first, *_) = standin.requests()
    assert "Pacific/Auckland]" in str(first["body"])


def test_a_model_that_is_down_is_a_502(alice: Person, standin: StandIn, rows: Rows) -> None:
    """The answer has the turn's ids, the message is stored, and the conversation is free for the next turn."""
    message = example.add("milk")
    standin.fault("server_error", match=message, times=5)
    failed = alice.say(message)
    assert failed.status == 502
    assert failed.headers["content-type"] == "application/problem+json"
    assert failed.json["tool_calls"] == []
    assert alice.say(example.add("call mum"), failed.json["conversation_id"]).status == 200
    stored = rows.execute("select role from message where user_id = %s order by position", [alice.id]).fetchall()
    assert [row["role"] for row in stored] == ["user", "user", "assistant"]


def test_arguments_that_are_nested_too_deeply_are_refused(alice: Person, standin: StandIn, rows: Rows) -> None:
    """The call fails like any other, and the turn is answered and replayed."""
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    calls = [example.call_add("real"), example.call_add("deep") | {"arguments": {example.text: deep}}]
    standin.fault("call", calls=calls, match="hello")
    answer = alice.say("hello", key="k")
    assert answer.status == 200
    assert [call["outcome"] for call in answer.json["tool_calls"]] == ["ok", "error"]
    assert alice.say("hello", key="k").body == answer.body
    assert example.rows_of(rows, alice.id) == [example.row("real")]


def adding(number: int) -> list[dict[str, Any]]:
    """Return as many calls, each of which adds another thing."""
    return [example.call_add(str(each)) for each in range(number)]


def test_an_answer_with_more_calls_than_a_turn_may_make_is_refused(alice: Person, standin: StandIn, rows: Rows) -> None:
    """None of its calls is made, because a part of them helps no user."""
    from chat.answers import MAX_CALLS

    standin.fault("call", calls=adding(MAX_CALLS + 1), match="hello")
    answer = alice.say("hello")
    assert (answer.status, answer.json["detail"]) == (502, "The model's answer is too long.")
    assert (answer.json["tool_calls"], example.rows_of(rows, alice.id)) == ([], [])


def test_the_number_of_calls_in_a_turn_is_bounded(alice: Person, standin: StandIn, rows: Rows) -> None:
    """The answer is a 502 with all calls that were made."""
    from chat.answers import MAX_CALLS

    standin.fault("call", calls=adding(MAX_CALLS - 10), match="hello", times=2)
    answer = alice.say("hello")
    assert answer.status == 502
    assert len(answer.json["tool_calls"]) == MAX_CALLS == len(example.rows_of(rows, alice.id))


@pytest.mark.parametrize("fault", ["say", "refusal"])
class TestLongReply:
    """A reply may be shorter than the longest answer of the model."""

    def test_it_is_cut(self, fault: str, alice: Person, standin: StandIn) -> None:
        """The rest is dropped."""
        from chat.reply_text import MAX_REPLY

        standin.fault(fault, text="y" * 1_000_000, match="hello")
        assert len(alice.say("hello").json["response"]) == MAX_REPLY

    def test_it_is_cut_before_it_is_cleaned(self, fault: str, alice: Person, standin: StandIn) -> None:
        """Cleaning a megabyte takes a second, which the request may not have."""
        standin.fault(fault, text="\u200b" * 100_000 + "Done.", match="hello")
        answer = alice.say("hello")
        assert (answer.status, answer.json.get("detail")) == (502, "The model answered nothing.")


def test_a_fault_of_the_server_is_a_500(alice: Person, rows: Rows, logs: Logs) -> None:
    """Here the runtime role lacks a right in Postgres. The log has the kind of the error."""
    rows.execute("revoke insert on tool_call from taskchat_app")
    try:
        answer = alice.say(example.add("milk"))
    finally:
        rows.execute("grant insert on tool_call to taskchat_app")
    assert answer.status == 500
    assert set(answer.json) >= {"conversation_id", "turn_id", "tool_calls"}
    assert "ProgrammingError" in str([line["error"] for line in logs() if line["message"] == "unexpected error"])


class TestRepeatedCalls:
    """The model resumes an interrupted turn, and makes a call that it reads as already made."""

    ADD: ClassVar = example.call_add("milk")

    def attempt(self, person: Person, standin: StandIn, *answers: list[dict[str, Any]], ends: bool = False) -> Response:
        """Send the message with its key. The model makes these calls, and then it answers or fails."""
        standin.reset()
        for calls in answers:
            standin.fault("call", calls=calls, match="hello")
        standin.fault("say" if ends else "quota", match="hello", times=None)
        answer = person.say("hello", key="k")
        assert answer.status == (200 if ends else 502)
        return answer

    def outcomes(self, answer: Response) -> list[str]:
        """Return the outcome of each call of the turn."""
        return [call["outcome"] for call in answer.json["tool_calls"]]

    def test_a_repeated_call_is_refused(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """The refusal is a failed call like any other, and tells the model how to make the call again."""
        self.attempt(alice, standin, [self.ADD])
        answer = self.attempt(alice, standin, [self.ADD], ends=True)
        assert example.rows_of(rows, alice.id) == [example.row("milk")]
        assert self.outcomes(answer) == ["ok", "error"]
        refusal = answer.json["tool_calls"][1]["result"]["error"]
        assert "make the call once more" in refusal
        assert refusal in str(standin.requests(match="hello")[-1]["body"])
        assert alice.say("hello", key="k").body == answer.body

    def test_a_call_that_is_made_once_more_is_done(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """The user may want it twice."""
        self.attempt(alice, standin, [self.ADD])
        answer = self.attempt(alice, standin, [self.ADD], [self.ADD], [self.ADD], ends=True)
        assert self.outcomes(answer) == ["ok", "error", "ok", "ok"]
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 3

    def test_a_user_who_asks_for_it_twice_gets_it_twice(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """The turn is interrupted between the two calls, and resumed by a model that reads one of them."""
        message = example.add("milk").then(example.add("milk"))
        standin.fault("call", calls=[self.ADD], match=message)
        standin.fault("quota", match=message, times=None)
        assert alice.say(message, key="k").status == 502
        standin.reset()
        answer = alice.say(message, key="k")
        assert (answer.status, self.outcomes(answer)) == (200, ["ok", "error", "ok"])
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 2

    def test_all_repeated_calls_of_one_answer_are_refused(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """The model had not read the first refusal when it made the second call."""
        self.attempt(alice, standin, [self.ADD, self.ADD])
        answer = self.attempt(alice, standin, [self.ADD, self.ADD], ends=True)
        assert self.outcomes(answer) == ["ok", "ok", "error", "error"]
        assert len(example.rows_of(rows, alice.id)) == 2

    def test_a_repeated_call_is_refused_once_in_any_number_of_attempts(
        self, alice: Person, standin: StandIn, rows: Rows
    ) -> None:
        """The refusal is recorded too. After an interruption, the call that followed it counts as already made."""
        self.attempt(alice, standin, [self.ADD])
        self.attempt(alice, standin, [self.ADD])
        self.attempt(alice, standin, [self.ADD])
        answer = self.attempt(alice, standin, [self.ADD], ends=True)
        assert self.outcomes(answer) == ["ok", "error", "ok", "error"]
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 2

    def test_a_call_with_other_arguments_is_another_call(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """Only the same tool with the same arguments is the same call."""
        self.attempt(alice, standin, [self.ADD])
        other = example.call_add("Milk")
        answer = self.attempt(alice, standin, [other], ends=True)
        assert self.outcomes(answer) == ["ok", "ok"]
        assert example.rows_of(rows, alice.id) == [example.row("milk"), example.row("Milk")]

    def test_a_call_of_a_reading_tool_is_repeated(self, alice: Person, standin: StandIn) -> None:
        """A tool that is marked as reading has no effect."""
        reading = [example.call_list()]
        self.attempt(alice, standin, reading)
        assert self.outcomes(self.attempt(alice, standin, reading, ends=True)) == ["ok", "ok"]

    def test_a_failed_call_is_repeated(self, alice: Person, standin: StandIn) -> None:
        """It had no effect."""
        failing = [example.call_change(ABSENT)]
        self.attempt(alice, standin, failing)
        answer = self.attempt(alice, standin, failing, ends=True)
        assert [call["result"]["error"] for call in answer.json["tool_calls"]] == [example.absent] * 2

    def test_a_turn_without_interruption_may_repeat_a_call(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """It makes it twice, and the next turn does too."""
        for _ in range(2):
            standin.reset()
            standin.fault("call", calls=[self.ADD, self.ADD], match="hello")
            assert self.outcomes(alice.say("hello")) == ["ok", "ok"]
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 4
