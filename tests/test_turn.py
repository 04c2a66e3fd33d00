"""A turn, from the gateway's event to the rows in Postgres."""

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
    """What the reply says was done is in Postgres, and so are both messages and the call."""
    message = example.add("milk")
    answer = alice.say(message)
    assert answer.status == 200
    (call,) = answer.json["tool_calls"]
    asked = {"name": call["tool"], "arguments": call["arguments"]}
    assert (asked, call["outcome"]) == (example.call_add("milk"), "ok")
    assert call["result"][example.text] == "milk"
    assert example.rows_of(rows, alice.id) == [example.row("milk")]
    said = rows.execute("select role, content from message where user_id = %s order by position", [alice.id]).fetchall()
    assert said == [
        {"role": "user", "content": message},
        {"role": "assistant", "content": answer.json["response"]},
    ]


def test_the_first_turns_of_a_process_may_come_at_once(environment: None, issuer: Issuer, rows: Rows) -> None:
    """As on a developer's server, which has one process for all: none finds the agent half made."""
    from chat.app import app

    people = [Person(uuid4().hex, issuer) for _ in range(8)]

    async def say(client: httpx2.AsyncClient, person: Person) -> int:
        headers = {"authorization": f"Bearer {person.token}"}
        answer = await client.post(f"/api/{person.id}/chat", json={"message": example.add("milk")}, headers=headers)
        return int(answer.status_code)

    async def all_say() -> list[int]:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="https://api.example.com"
        ) as client:
            return await asyncio.gather(*(say(client, person) for person in people))

    assert run(all_say()) == [200] * len(people)
    assert [example.rows_of(rows, person.id) for person in people] == [[example.row("milk")]] * len(people)


def test_one_message_may_ask_for_several_things(alice: Person, rows: Rows) -> None:
    """Several calls, the same tool twice among them, all of them in the answer and in their order."""
    message = example.add("milk", "call mum").then(example.change("milk"))
    answer = alice.say(message)
    assert [call["tool"] for call in answer.json["tool_calls"]] == message.tools
    assert len({call["call_id"] for call in answer.json["tool_calls"]}) == 4
    assert example.rows_of(rows, alice.id) == [example.row("milk", changed=True), example.row("call mum")]


def test_calls_are_kept_in_order(alice: Person, rows: Rows) -> None:
    """The records of a turn are numbered as the calls were made, and each bears its conversation."""
    answer = alice.say(example.add("one", "two", "three")).json
    kept = rows.execute(
        "select call_id, conversation_id::text from tool_call where user_id = %s order by position", [alice.id]
    ).fetchall()
    assert [(row["call_id"], row["conversation_id"]) for row in kept] == [
        (call["call_id"], answer["conversation_id"]) for call in answer["tool_calls"]
    ]


def test_the_next_turn_reads_calls_and_results(alice: Person, standin: StandIn) -> None:
    """The model is shown what it did before: its calls by id, each with its output."""
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
    """The second turn is in the first one's conversation and knows what was said."""
    message = example.add("milk")
    first = alice.say(message).json
    second = alice.say("What did I just say?", first["conversation_id"]).json
    assert second["conversation_id"] == first["conversation_id"]
    assert second["turn_id"] != first["turn_id"]
    assert message in second["response"]


def test_a_failed_tool_is_told_and_shown(alice: Person, rows: Rows) -> None:
    """The model gets a plain sentence, the caller the failed call, the database its record."""
    answer = alice.say(example.fail()).json
    (call,) = answer["tool_calls"]
    assert (call["outcome"], call["result"]) == ("error", {"error": example.absent})
    assert str(ABSENT) in answer["response"]
    kept = rows.execute("select outcome from tool_call where user_id = %s", [alice.id]).fetchall()
    assert kept == [{"outcome": "error"}]


@pytest.mark.parametrize("fault", ["malformed_arguments", "wrong_arguments", "extra_arguments", "unknown_tool"])
def test_a_call_the_model_got_wrong_is_kept_too(alice: Person, standin: StandIn, rows: Rows, fault: str) -> None:
    """Arguments that are no JSON or break the schema, tools that do not exist: failed calls, and the turn goes on."""
    message = example.add("milk")
    standin.fault(fault, match=message)
    answer = alice.say(message)
    assert answer.status == 200
    assert [call["outcome"] for call in answer.json["tool_calls"]].count("error") == 1
    kept = rows.execute("select outcome from tool_call where user_id = %s order by position", [alice.id]).fetchall()
    assert [row["outcome"] for row in kept] == [call["outcome"] for call in answer.json["tool_calls"]]


def test_calls_that_the_model_names_alike_are_all_kept(alice: Person, standin: StandIn, rows: Rows) -> None:
    """Two calls with one id in one answer are two calls, each with a record of its own."""
    message = example.add("milk", "call mum")
    standin.fault("duplicate_call_ids", match=message)
    answer = alice.say(message).json
    assert len({call["call_id"] for call in answer["tool_calls"]}) == 2
    assert example.rows_of(rows, alice.id) == [example.row("milk"), example.row("call mum")]


def test_the_model_is_asked_to_keep_nothing(alice: Person, standin: StandIn) -> None:
    """`store` is false in every request."""
    alice.say(example.add("milk"))
    assert [request["body"]["store"] for request in standin.requests()] == [False, False]


def test_usage_is_stored_with_the_reply(alice: Person, rows: Rows) -> None:
    """Model and tokens of the turn lie with its reply."""
    alice.say(example.add("milk"))
    (row,) = rows.execute("select usage from message where user_id = %s and role = 'assistant'", [alice.id]).fetchall()
    assert row["usage"]["model"] == "stand-in"
    assert row["usage"]["requests"] == 2
    assert row["usage"]["input_tokens"] > row["usage"]["output_tokens"] > 0


def test_the_person_s_words_come_with_time_and_place(alice: Person, standin: StandIn) -> None:
    """The model can tell what today is where the person is."""
    alice.post({"message": "hello", "timezone": "Pacific/Auckland"})
    (first, *_) = standin.requests()
    assert "Pacific/Auckland]" in str(first["body"])


def test_a_model_that_is_down_is_said_so(alice: Person, standin: StandIn, rows: Rows) -> None:
    """502 with the turn's ids, the message kept, and the conversation free for the next turn."""
    message = example.add("milk")
    standin.fault("server_error", match=message, times=5)
    failed = alice.say(message)
    assert failed.status == 502
    assert failed.headers["content-type"] == "application/problem+json"
    assert failed.json["tool_calls"] == []
    assert alice.say(example.add("call mum"), failed.json["conversation_id"]).status == 200
    said = rows.execute("select role from message where user_id = %s order by position", [alice.id]).fetchall()
    assert [row["role"] for row in said] == ["user", "user", "assistant"]


def test_arguments_too_deep_to_write_down_are_refused(alice: Person, standin: StandIn, rows: Rows) -> None:
    """A call with them fails like any other, and the turn is answered and replayed."""
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
    """Return so many calls, each of which adds something else."""
    return [example.call_add(str(each)) for each in range(number)]


def test_an_answer_with_more_calls_than_a_turn_may_make_is_refused(alice: Person, standin: StandIn, rows: Rows) -> None:
    """Nothing of it is done: a part of it would be of no use to anybody."""
    from chat.answers import MAX_CALLS

    standin.fault("call", calls=adding(MAX_CALLS + 1), match="hello")
    answer = alice.say("hello")
    assert (answer.status, answer.json["detail"]) == (502, "The model's answer is too long.")
    assert (answer.json["tool_calls"], example.rows_of(rows, alice.id)) == ([], [])


def test_a_turn_full_of_calls_comes_to_an_end(alice: Person, standin: StandIn, rows: Rows) -> None:
    """So many calls are made and no more, and all that were made are told."""
    from chat.answers import MAX_CALLS

    standin.fault("call", calls=adding(MAX_CALLS - 10), match="hello", times=2)
    answer = alice.say("hello")
    assert answer.status == 502
    assert len(answer.json["tool_calls"]) == MAX_CALLS == len(example.rows_of(rows, alice.id))


@pytest.mark.parametrize("fault", ["say", "refusal"])
class TestLongReply:
    """As long as an answer of the model may be: nobody reads on for so long."""

    def test_it_is_cut(self, fault: str, alice: Person, standin: StandIn) -> None:
        """To what can be returned."""
        from chat.agent import MAX_REPLY

        standin.fault(fault, text="y" * 1_000_000, match="hello")
        assert len(alice.say("hello").json["response"]) == MAX_REPLY

    def test_it_is_cut_before_it_is_cleaned(self, fault: str, alice: Person, standin: StandIn) -> None:
        """To clean a megabyte takes a second of a request that may have none left."""
        standin.fault(fault, text="\u200b" * 100_000 + "Done.", match="hello")
        answer = alice.say("hello")
        assert (answer.status, answer.json.get("detail")) == (502, "The model answered nothing.")


def test_a_fault_of_ours_is_not_blamed_on_the_model(alice: Person, rows: Rows, logs: Logs) -> None:
    """A right that is missing in the database is a 500 of the server's, with its kind in the log."""
    rows.execute("revoke insert on tool_call from taskchat_app")
    try:
        answer = alice.say(example.add("milk"))
    finally:
        rows.execute("grant insert on tool_call to taskchat_app")
    assert answer.status == 500
    assert set(answer.json) >= {"conversation_id", "turn_id", "tool_calls"}
    assert "ProgrammingError" in str([line["error"] for line in logs() if line["message"] == "unexpected error"])


class TestACallThatIsMadeAgain:
    """By a model that goes on with an interrupted turn, and makes a call that stands in what it is shown."""

    ADD: ClassVar = example.call_add("milk")

    def attempt(self, person: Person, standin: StandIn, *answers: list[dict[str, Any]], ends: bool = False) -> Response:
        """Say it with its key, to a model that makes these calls; then it answers, or fails."""
        standin.reset()
        for calls in answers:
            standin.fault("call", calls=calls, match="hello")
        standin.fault("say" if ends else "quota", match="hello", times=None)
        answer = person.say("hello", key="k")
        assert answer.status == (200 if ends else 502)
        return answer

    def outcomes(self, answer: Response) -> list[str]:
        """How each call of the turn ended."""
        return [call["outcome"] for call in answer.json["tool_calls"]]

    def test_is_not_done_and_the_model_is_told(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """The refusal is a failed call like any other, and says how the call can be made all the same."""
        self.attempt(alice, standin, [self.ADD])
        answer = self.attempt(alice, standin, [self.ADD], ends=True)
        assert example.rows_of(rows, alice.id) == [example.row("milk")]
        assert self.outcomes(answer) == ["ok", "error"]
        told = answer.json["tool_calls"][1]["result"]["error"]
        assert "make the call once more" in told
        assert told in str(standin.requests(match="hello")[-1]["body"])
        assert alice.say("hello", key="k").body == answer.body

    def test_is_done_when_it_is_made_once_more(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """The person may want it twice."""
        self.attempt(alice, standin, [self.ADD])
        answer = self.attempt(alice, standin, [self.ADD], [self.ADD], [self.ADD], ends=True)
        assert self.outcomes(answer) == ["ok", "error", "ok", "ok"]
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 3

    def test_is_done_twice_for_someone_who_asked_for_that(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """Interrupted between the two, and finished by a model that sees one of them done."""
        said = example.add("milk").then(example.add("milk"))
        standin.fault("call", calls=[self.ADD], match=said)
        standin.fault("quota", match=said, times=None)
        assert alice.say(said, key="k").status == 502
        standin.reset()
        answer = alice.say(said, key="k")
        assert (answer.status, self.outcomes(answer)) == (200, ["ok", "error", "ok"])
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 2

    def test_is_held_off_as_often_as_one_answer_makes_it(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """Of two in one answer, the second was not made by a model that had been told."""
        self.attempt(alice, standin, [self.ADD, self.ADD])
        answer = self.attempt(alice, standin, [self.ADD, self.ADD], ends=True)
        assert self.outcomes(answer) == ["ok", "ok", "error", "error"]
        assert len(example.rows_of(rows, alice.id)) == 2

    def test_is_held_off_once_however_often_the_turn_is_interrupted(
        self, alice: Person, standin: StandIn, rows: Rows
    ) -> None:
        """That the model was told stands on record too. What it then did is an earlier attempt's again."""
        self.attempt(alice, standin, [self.ADD])
        self.attempt(alice, standin, [self.ADD])
        self.attempt(alice, standin, [self.ADD])
        answer = self.attempt(alice, standin, [self.ADD], ends=True)
        assert self.outcomes(answer) == ["ok", "error", "ok", "error"]
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 2

    def test_with_other_arguments_is_another_call(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """Nothing is guessed: only the same tool with the same arguments is the same call."""
        self.attempt(alice, standin, [self.ADD])
        other = example.call_add("Milk")
        answer = self.attempt(alice, standin, [other], ends=True)
        assert self.outcomes(answer) == ["ok", "ok"]
        assert example.rows_of(rows, alice.id) == [example.row("milk"), example.row("Milk")]

    def test_that_reads_is_made_as_often_as_the_model_likes(self, alice: Person, standin: StandIn) -> None:
        """A tool that says it only reads has no effect to repeat."""
        reading = [example.call_list()]
        self.attempt(alice, standin, reading)
        assert self.outcomes(self.attempt(alice, standin, reading, ends=True)) == ["ok", "ok"]

    def test_that_had_failed_is_made_again(self, alice: Person, standin: StandIn) -> None:
        """It had no effect."""
        failing = [example.call_change(ABSENT)]
        self.attempt(alice, standin, failing)
        answer = self.attempt(alice, standin, failing, ends=True)
        assert [call["result"]["error"] for call in answer.json["tool_calls"]] == [example.absent] * 2

    def test_in_a_turn_that_was_not_interrupted_is_done(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """Twice in one turn, and again in the next one."""
        for _ in range(2):
            standin.reset()
            standin.fault("call", calls=[self.ADD, self.ADD], match="hello")
            assert self.outcomes(alice.say("hello")) == ["ok", "ok"]
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 4
