"""The answer comes as a list of events, as they happen: over real HTTP, from the app that ships.

Promises: what refuses a request does so before the first byte, with its status. The first event comes at once, each
call when it is made, each word when the model writes it. The JSON answer is the last event. A client that leaves ends
nothing, and one that comes back gets the whole list, also from another process. No reader waits for another one.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from chat.app import ChatProcess, create_app
from chat.stream import response
from dev.standin_model.client import StandIn
from taskchat.tasks import toolset
from tests.conftest import Person, serving
from tests.db_assertions import Rows
from tests.domain import example
from tests.streams import SSE, Client, reply_of

BOTH_APIS = pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)
MILK = example.add("buy milk")


@pytest.fixture
def url(environment: None) -> Iterator[str]:
    """Serve the app with processes of its own."""
    with serving(create_app(ChatProcess(toolset))) as address:
        yield address


@pytest.fixture
def other_url(environment: None) -> Iterator[str]:
    """Serve the app a second time, as another environment of Lambda does."""
    with serving(create_app(ChatProcess(toolset))) as address:
        yield address


@pytest.fixture
def client(url: str, alice: Person) -> Client:
    """Return Alice's client."""
    return Client(url, alice)


def names(events: list[tuple[str, Any]]) -> list[str]:
    """Return the names of the events, those of text once in a row."""
    found = [name for name, _ in events]
    return [name for place, name in enumerate(found) if name != "text" or found[place - 1 : place] != ["text"]]


def let_go(standin: StandIn, number: int = 1) -> None:
    """Let the model go on, as soon as so many of its answers wait."""
    assert standin.waiting(at_least=number) == number
    standin.release()


@BOTH_APIS
class TestEvents:
    """What a client reads, with either API of the model."""

    def test_the_list_is_in_order_and_ends_with_the_json_answer(self, client: Client) -> None:
        """The same request as JSON gives the same answer."""
        with client.say(example.add("buy milk", "call mum"), "key") as stream:
            events = stream.all()
        call = ["tool_started", "tool_finished"]
        assert names(events) == ["accepted", *call, *call, "text", "finished"]
        answer = client.ask(example.add("buy milk", "call mum"), "key")
        assert events[-1][1] == answer.json
        assert reply_of(events) == answer.json["response"]
        assert [data for name, data in events if name == "tool_finished"] == answer.json["tool_calls"]
        assert answer.header("idempotent-replayed") == "true"
        shown = {"conversation_id": answer.json["conversation_id"], "turn_id": answer.json["turn_id"]}
        assert events[0][1] == shown | {"replayed": False}

    def test_the_first_event_comes_before_the_model_answers(self, client: Client, standin: StandIn) -> None:
        """The model has not written a word."""
        standin.fault("hang", match=MILK, seconds=40)
        with client.say(MILK, "key") as stream:
            assert stream.until("accepted")[1]["replayed"] is False
            let_go(standin)
            assert names(stream.all())[-1] == "finished"

    def test_a_call_shows_when_it_is_made(self, client: Client, standin: StandIn) -> None:
        """The model thinks about the next one."""
        standin.fault("hang", match=MILK, after_calls=1, seconds=40)
        with client.say(MILK, "key") as stream:
            assert stream.until("tool_started")[1]["tool"] == example.add_tool
            assert stream.until("tool_finished")[1]["outcome"] == "ok"
            let_go(standin)
            stream.all()

    def test_words_come_as_the_model_writes_them(self, client: Client, standin: StandIn) -> None:
        """The model has stopped after its second word."""
        standin.fault("pause", match=MILK, after_calls=1, pieces=2, seconds=40)
        with client.say(MILK, "key") as stream:
            texts = [stream.until("text")[1]["text"] for _ in range(2)]
            let_go(standin)
            assert reply_of(stream.all()).startswith("".join(texts))

    def test_a_message_before_the_calls_is_shown_as_one_of_its_own(self, client: Client, standin: StandIn) -> None:
        """It is no part of the reply."""
        standin.fault("preamble", match=MILK, text="Let me see. ")
        with client.say(MILK, "key") as stream:
            events = stream.all()
        assert names(events) == ["accepted", "text", "tool_started", "tool_finished", "text", "finished"]
        texts = [data for name, data in events if name == "text"]
        assert "".join(data["text"] for data in texts if data["message"] == 0) == "Let me see."
        assert reply_of(events) == events[-1][1]["response"]

    @pytest.mark.parametrize(
        ("fault", "options"),
        [("split_surrogates", {}), ("split_blanks", {}), ("say", {"text": "a" * 30_000}), ("refusal", {})],
    )
    def test_the_text_is_the_reply(self, client: Client, standin: StandIn, fault: str, options: dict[str, Any]) -> None:
        """No half character is shown, no character too much, and nothing that is not stored."""
        standin.fault(fault, match="hello", **options)
        with client.say("hello", "key") as stream:
            events = stream.all()
        assert reply_of(events) == events[-1][1]["response"]
        assert "\ufffd" not in reply_of(events)

    @pytest.mark.parametrize(
        ("fault", "options"),
        [("break_off", {"pieces": 2}), ("cut_stream", {"pieces": 2}), ("length", {}), ("content_filter", {})],
    )
    def test_a_broken_answer_ends_as_failed_and_the_key_goes_on(
        self, client: Client, standin: StandIn, fault: str, options: dict[str, Any]
    ) -> None:
        """What was shown stays true: the call is made, and never again."""
        standin.fault(fault, match=MILK, after_calls=1, **options)
        with client.say(MILK, "key") as stream:
            events = stream.all()
        assert names(events)[-1] == "failed"
        problem = events[-1][1]
        assert (problem["status"], problem["type"]) == (502, "urn:taskchat:problem:model-failed")
        assert [call["outcome"] for call in problem["tool_calls"]] == ["ok"]
        with client.say(MILK, "key") as stream:
            again = stream.all()
        assert names(again) == ["accepted", "tool_started", "tool_finished", "text", "finished"]
        assert again[2] == events[2]
        assert len(again[-1][1]["tool_calls"]) == 1

    def test_a_turn_costs_the_same(self, client: Client, rows: Rows) -> None:
        """The provider's own numbers are counted, streamed or not."""
        for key, accept in (("one", SSE), ("two", "application/json")):
            with client.say("hello", key, accept=accept) as stream:
                stream.response.read()
        found = rows.execute(
            "select usage from message where role = 'assistant' and user_id = %s", [client.caller.id]
        ).fetchall()
        one, two = (row["usage"] for row in found)
        assert one["estimated_tokens"] == two["estimated_tokens"] == 0
        assert (one["requests"], one["output_tokens"]) == (two["requests"], two["output_tokens"])


def test_the_last_of_several_messages_is_the_reply(client: Client, standin: StandIn) -> None:
    """The Responses API has such answers."""
    standin.fault("many_messages", match="hello")
    with client.say("hello", "key") as stream:
        events = stream.all()
    assert {data["message"] for name, data in events if name == "text"} == {0, 1}
    assert reply_of(events) == events[-1][1]["response"]


class TestRefusals:
    """Whatever refuses a request has a status of its own."""

    def test_each_has_its_status_before_the_first_byte(self, client: Client, bob: Person, standin: StandIn) -> None:
        """The body is the problem, as for JSON."""
        message = {"message": "hello"}
        standin.fault("hang", match=MILK, seconds=40)
        with client.say(MILK, "running") as running:
            conversation = running.until("accepted")[1]["conversation_id"]
            cases: list[tuple[int, Any, dict[str, str]]] = [
                (400, b"{", {}),
                (401, message, {"authorization": "Bearer nothing"}),
                (403, message, {"authorization": f"Bearer {bob.token}"}),
                (404, message | {"conversation_id": "6d1f0a44-8d4b-4c43-8c5f-3f1e0f0e0001"}, {}),
                (409, message | {"conversation_id": conversation}, {}),
                (413, message | {"message": "a" * 40_000}, {}),
                (415, message, {"content-type": "text/plain"}),
                (422, {}, {}),
                (422, message, {"idempotency-key": "a b"}),
                (422, message, {"idempotency-key": "running"}),
            ]
            for status, body, headers in cases:
                with client.stream(body, **headers) as refused:
                    assert refused.status == status
                    assert refused.header("content-type") == "application/problem+json"
                    assert refused.json["status"] == status
            let_go(standin)
            running.all()

    def test_half_an_emoji_is_refused_once(self, client: Client) -> None:
        """A page that cuts a text in its middle sends it, and again with each later message of the list."""
        messages = [{"id": "one", "role": "user", "parts": [{"type": "text", "text": "\ud83d"}]}]
        with client.stream({"id": "chat", "messages": messages}) as refused:
            assert (refused.status, [fault["field"] for fault in refused.json["fields"]]) == (422, ["messages.parts"])
        messages.append({"id": "two", "role": "user", "parts": [{"type": "text", "text": "hello"}]})
        with client.stream({"id": "chat", "messages": messages}) as stream:
            assert stream.response.read().endswith(b"[DONE]\n\n")

    def test_a_limit_has_its_status(self, url: str, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """It says when to come back."""
        monkeypatch.setenv("TURN_BURST", "1")
        monkeypatch.setenv("TURNS_PER_MINUTE", "1")
        client = Client(url, alice)
        client.ask("hello", "one")
        with client.say("hello", "two") as refused:
            assert (refused.status, refused.header("retry-after") is not None) == (429, True)

    def test_a_limit_counts_those_who_wait_for_another_process(
        self, client: Client, other_url: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each holds a process until the turn ends, so one key is no way around the limit."""
        monkeypatch.setenv("TURN_BURST", "2")
        monkeypatch.setenv("TURNS_PER_MINUTE", "1")
        standin.fault("hang", match=MILK, seconds=40)
        elsewhere = Client(other_url, client.caller)
        with client.say(MILK, "key") as stream, elsewhere.say(MILK, "key") as waiting:
            stream.until("accepted")
            assert waiting.until("accepted")[1] == stream.read[0][1]
            with serving(create_app(ChatProcess(toolset))) as third:
                with Client(third, client.caller).say(MILK, "key") as refused:
                    assert (refused.status, refused.header("retry-after") is not None) == (429, True)
            let_go(standin)
            assert names(waiting.all())[-1] == names(stream.all())[-1] == "finished"

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            ("*/*", "application/json"),
            ("application/json", "application/json"),
            ("application/json, text/event-stream", "application/json"),
            ("application/json;q=0.5, text/event-stream", SSE),
            ("text/event-stream;q=0", "application/json"),
            ("Text/Event-Stream; q=oops", "application/json"),
            ("TEXT/EVENT-STREAM", SSE),
        ],
    )
    def test_the_client_chooses(self, client: Client, accept: str, kind: str) -> None:
        """JSON wins where both are liked as much."""
        with client.say("hello", "key", accept=accept) as stream:
            assert stream.header("content-type") == kind
            stream.response.read()


class TestReaders:
    """Clients that leave, come back, or are many."""

    def test_a_client_that_leaves_ends_nothing(self, client: Client, standin: StandIn) -> None:
        """The turn goes on, and the same key reads all of it."""
        standin.fault("pause", match=MILK, after_calls=1, pieces=1, seconds=40)
        with client.say(MILK, "key") as stream:
            stream.until("text")
            stream.leave()
        let_go(standin)
        with client.say(MILK, "key") as again:
            events = again.all()
        assert names(events) == ["accepted", "tool_started", "tool_finished", "text", "finished"]
        assert len(standin.requests(MILK)) == 2

    def test_a_second_reader_gets_the_same_list(self, client: Client, standin: StandIn) -> None:
        """From its start, while the turn runs."""
        standin.fault("pause", match=MILK, after_calls=1, pieces=1, seconds=40)
        with client.say(MILK, "key") as first, client.say(MILK, "key") as second:
            for stream in (first, second):
                stream.until("text")
            let_go(standin)
            assert first.all() == second.all()
        assert len(standin.requests(MILK)) == 2

    def test_a_running_turn_is_a_409_for_json(self, client: Client, standin: StandIn) -> None:
        """As it always was."""
        standin.fault("hang", match=MILK, seconds=40)
        with client.say(MILK, "key") as stream:
            stream.until("accepted")
            assert client.ask(MILK, "key").status == 409
            let_go(standin)
            stream.all()

    def test_another_process_gives_the_list_when_the_turn_is_done(
        self, client: Client, other_url: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Until then it says that the turn is accepted, and that it is still there."""
        monkeypatch.setattr(response, "COMMENT_SECONDS", 0.01)
        standin.fault("hang", match=MILK, after_calls=1, seconds=40)
        with client.say(MILK, "key") as first, Client(other_url, client.caller).say(MILK, "key") as second:
            first.until("tool_finished")
            assert second.until("accepted") == first.read[0]
            let_go(standin)
            assert second.all()[1:] == compact(first.all()[1:])
        assert second.comments > 0
        assert len(standin.requests(MILK)) == 2

    def test_another_process_goes_on_with_an_interrupted_turn(
        self, client: Client, other_url: str, standin: StandIn
    ) -> None:
        """The one that waited does the rest, and repeats no call."""
        standin.fault("hang", match=MILK, after_calls=1, seconds=40)
        with client.say(MILK, "key") as first, Client(other_url, client.caller).say(MILK, "key") as second:
            first.until("tool_finished")
            second.until("accepted")
            standin.fault("server_error", match=MILK, times=9)
            let_go(standin)
            assert names(first.all())[-1] in ("failed", "finished")
            standin.reset()
            events = second.all()
        assert names(events)[-1] in ("failed", "finished")
        assert sum(name == "tool_finished" for name, _ in events) == 1

    def test_the_key_of_another_person_is_another_turn(self, client: Client, bob: Person, standin: StandIn) -> None:
        """They read nothing of each other."""
        standin.fault("hang", match=MILK, seconds=40, times=2)
        with client.say(MILK, "key") as hers, Client(client.url, bob).say(MILK, "key") as his:
            assert hers.until("accepted")[1]["turn_id"] != his.until("accepted")[1]["turn_id"]
            let_go(standin, 2)
            hers.all()
            his.all()

    def test_nobody_waits_for_a_stream_of_others(self, client: Client, bob: Person, standin: StandIn) -> None:
        """JSON turns end while a stream waits for its model."""
        standin.fault("pause", match=MILK, after_calls=1, pieces=1, seconds=40)
        with client.say(MILK, "key") as stream:
            stream.until("text")
            assert Client(client.url, bob).ask("hello", "key").status == 200
            let_go(standin)
            stream.all()

    def test_nothing_of_a_turn_stays(self, environment: None, alice: Person) -> None:
        """The process forgets its events when it is done."""
        process = ChatProcess(toolset)
        with serving(create_app(process)) as address:
            with Client(address, alice).say(MILK, "key") as stream:
                stream.all()
            client = Client(address, alice)
            assert client.ask(MILK, "key").header("idempotent-replayed") == "true"
            assert not vars(process.turns)["_here"]

    def test_a_server_that_stops_says_so(self, environment: None, alice: Person, standin: StandIn) -> None:
        """The stream ends with a problem, and the next server goes on with the turn at once."""
        standin.fault("hang", match=MILK, after_calls=1, seconds=40)
        process = ChatProcess(toolset)
        with ExitStack() as streams:
            with serving(create_app(process), grace=1) as address:
                stream = streams.enter_context(Client(address, alice).say(MILK, "key"))
                stream.until("tool_finished")
                standin.waiting(at_least=1)
            name, problem = stream.all()[-1]
        assert (name, problem["type"]) == ("failed", "urn:taskchat:problem:unavailable")
        standin.reset()
        with serving(create_app(ChatProcess(toolset))) as address:
            answer = Client(address, alice).ask(MILK, "key")
        assert len(answer.json["tool_calls"]) == 1


class TestResume:
    """The route on which the AI SDK resumes a stream."""

    def test_there_is_nothing_to_resume(self, client: Client) -> None:
        """No conversation, one without a turn under way, and another person's: all look alike."""
        done = client.ask("hello", "key").json["conversation_id"]
        for id in (done, "any-text", "6d1f0a44-8d4b-4c43-8c5f-3f1e0f0e0001"):
            with client.stream(b"", method="GET", path=f"/chat/{id}/stream") as answer:
                assert (answer.status, answer.response.read()) == (204, b"")

    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_a_running_turn_is_read_to_its_end(
        self, client: Client, other_url: str, elsewhere: bool, standin: StandIn
    ) -> None:
        """In this process as it goes on, in another one when it is done."""
        standin.fault("hang", match=MILK, after_calls=1, seconds=40)
        reader = Client(other_url if elsewhere else client.url, client.caller)
        with client.say(MILK, "key") as stream:
            conversation = stream.until("accepted")[1]["conversation_id"]
            stream.until("tool_finished")
            with reader.stream(b"", method="GET", path=f"/chat/{conversation}/stream") as resumed:
                assert resumed.header("x-vercel-ai-ui-message-stream") == "v1"
                assert b'"type":"start"' in resumed.response.readline()
                let_go(standin)
                rest = resumed.response.read()
            stream.all()
        assert rest.count(b"tool-output-available") == 1
        assert rest.endswith(b'{"type":"finish"}\n\ndata: [DONE]\n\n')

    def test_a_turn_of_another_person_is_not_there(self, client: Client, bob: Person, standin: StandIn) -> None:
        """Its conversation's id says nothing."""
        standin.fault("hang", match=MILK, seconds=40)
        with client.say(MILK, "key") as stream:
            conversation = stream.until("accepted")[1]["conversation_id"]
            his = Client(client.url, bob)
            with his.stream(b"", method="GET", path=f"/chat/{conversation}/stream") as answer:
                assert answer.status == 204
            let_go(standin)
            stream.all()


def compact(events: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the events with one text, as they are stored."""
    kept = [event for event in events if event[0] != "text"]
    return [*kept[:-1], ("text", {"message": 0, "text": reply_of(events)}), kept[-1]]


def test_api_gateway_gets_the_same_body_whole(alice: Person) -> None:
    """The HTTP API cannot stream: the events come together at the end of the turn."""
    answer = alice.say(MILK, key="key", accept=SSE)
    assert (answer.status, answer.headers["content-type"]) == (200, SSE)
    assert answer.body.startswith("event: accepted\nid: 0\ndata: {")
    assert f"event: finished\nid: {answer.body.count('event: ') - 1}\n" in answer.body
