"""The AI SDK's UI message stream, version 1: the checks of a request, and the parts of a message."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from chat.stream.ag_ui import AgUiRequest
from chat.stream.ai_sdk import AiSdkEncoder, AiSdkRequest
from chat.stream.asked import Asked
from chat.stream.events import Event, Failed, Finished, Text, ToolFinished
from taskchat.errors import InvalidInput, ModelFailed
from taskchat.http.input import check_value
from tests.stream_rules import (
    CONVERSATION,
    TURN,
    accepted,
    call,
    finished,
    is_sent_again,
    parse,
    read_ui_message,
    send,
    started,
    turns,
)

CHAT = "chat-1"
HIDDEN = "grandmother"


def user(text: str = "Add buy milk", key: str = "m1", *more: Any) -> dict[str, Any]:
    """Return a message of the user."""
    return {"id": key, "role": "user", "parts": [{"type": "text", "text": text}, *more]}


def parts(*parts: Any) -> dict[str, Any]:
    """Return the field of a list with one message of these parts."""
    return {"messages": [{"id": "m1", "role": "user", "parts": list(parts)}]}


def body(*messages: Any, **fields: Any) -> dict[str, Any]:
    """Return a request with these messages, or with one of the user."""
    return {"id": CHAT, "messages": [*(messages or (user(),))], "trigger": "submit-message", **fields}


def ask(value: Any) -> Asked:
    """Return the turn that Alice asks for."""
    return check_value(AiSdkRequest, value).asked("alice")


def faults(value: Any) -> set[str]:
    """Return the names of the fields at fault. No value is in the answer."""
    with pytest.raises(InvalidInput) as caught:
        ask(value)
    assert HIDDEN not in json.dumps(caught.value.members)
    return {fault["field"] for fault in caught.value.members["fields"]}


def chunks_of(events: list[Event]) -> list[dict[str, Any]]:
    """Return the chunks as a client parses them. The end of the stream follows the last event of a turn."""
    *data, last = send(AiSdkEncoder(), events)
    assert last == "[DONE]"
    return [parse(each) for each in data]


class TestRequest:
    """A request of `useChat` becomes a turn."""

    def test_the_last_user_message_is_the_key(self) -> None:
        """Its id makes a retry the same turn."""
        assert ask(body(user("a", "m0"), {"role": "assistant", "id": "a0"}, user())).key == "m1"

    @pytest.mark.parametrize("again", [{"trigger": "regenerate-message", "messageId": "a1"}, {"trigger": None}])
    def test_to_regenerate_is_to_send_again(self, again: dict[str, Any]) -> None:
        """So it replays: the effects of the message are done."""
        first, second = ask(body()), ask(body() | again)
        assert (first.key, first.request) == (second.key, second.request)

    def test_a_list_that_ends_with_another_message_is_the_same_request(self) -> None:
        """A client that sends tool results by itself gets the stored answer."""
        answer = {"id": "a1", "role": "assistant", "parts": [{"type": "dynamic-tool", "state": "output-available"}]}
        assert ask(body(user(), answer)).request == ask(body()).request

    def test_the_chat_is_the_conversation(self) -> None:
        """It follows the rule of AG-UI's threads: one id names one conversation in both protocols."""
        as_thread = {"threadId": CHAT, "runId": "r", "messages": [{"role": "user", "content": "Add buy milk"}]}
        assert ask(body()).request == check_value(AgUiRequest, as_thread).asked("alice").request
        assert ask(body(id=str(CONVERSATION))).request.conversation_id == CONVERSATION

    def test_unknown_fields_are_ignored(self) -> None:
        """An application adds its own to the body and to the message."""
        odd = user() | {"metadata": {"system": HIDDEN}, "createdAt": 1}
        assert ask(body(odd, tools={"a": 1}, model=HIDDEN)).request == ask(body()).request

    def test_only_the_last_user_message_is_read(self) -> None:
        """A file of an earlier message is not sent again for nothing, and a forged answer changes nothing."""
        earlier = [{"role": "user", "parts": [{"type": "file", "url": "data:"}]}, {"role": "assistant", "parts": 5}]
        assert ask(body(*earlier, user())).request == ask(body()).request

    def test_a_list_of_one_mebibyte_is_read(self) -> None:
        """The client's list grows with its conversation."""
        earlier = [user("x" * 60, str(number)) for number in range(7_000)]
        assert ask(body(*earlier, user())).request == ask(body()).request

    def test_the_body_may_have_a_timezone(self) -> None:
        """The transport's option `body` adds it."""
        assert ask(body(timezone="Europe/Paris")).request.timezone == "Europe/Paris"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("id", {"id": ""}),
            ("id", {"id": f"{HIDDEN} {HIDDEN}"}),
            ("id", {"id": None}),
            ("timezone", {"timezone": HIDDEN}),
            ("messages", {"messages": []}),
            ("messages", {"messages": {HIDDEN: 1}}),
            ("messages", {"messages": [{"role": "assistant", "id": HIDDEN}]}),
            ("messages", {"messages": [{"role": "system", "parts": [{"type": "text", "text": HIDDEN}]}, user()]}),
            ("messages.id", {"messages": [user(key="")]}),
            ("messages.id", {"messages": [user(key=HIDDEN * 30)]}),
            ("messages.id", {"messages": [{"role": "user", "parts": [{"type": "text", "text": HIDDEN}]}]}),
            ("messages.parts", {"messages": [{"role": "user", "id": "m1", "content": HIDDEN}]}),
            ("messages.parts", {"messages": [user("")]}),
            ("messages.parts", {"messages": [user(HIDDEN * 400)]}),
            ("messages.parts", {"messages": [user(f"{HIDDEN}\x00")]}),
            ("messages.parts", parts()),
            ("messages.parts", parts(HIDDEN)),
            ("messages.parts", parts({"type": "text", "text": HIDDEN}, {"type": "file", "url": HIDDEN})),
            ("messages.parts", parts({"type": "text", "text": HIDDEN}, {"type": "data-city", "data": HIDDEN})),
            ("messages.parts", parts({"type": "text", "text": [HIDDEN]})),
        ],
    )
    def test_a_wrong_field_is_named(self, field: str, value: dict[str, Any]) -> None:
        """The answer has the field's name and a reason, and nothing of the value."""
        assert faults(body() | value) == {field}


class TestParts:
    """A turn's events become the parts of one message."""

    def test_a_turn_with_a_call(self) -> None:
        """The reply is in a step of its own. Every tool is dynamic: the client has no list of them."""
        made = call(1, {"id": 1}, arguments={"title": "Молоко"})
        chunks = chunks_of(
            [accepted(), started(made), ToolFinished(made), Text(0, "Add"), Text(0, "ed."), finished(made)]
        )
        assert chunks == [
            {
                "type": "start",
                "messageId": str(TURN),
                "messageMetadata": {"conversationId": str(CONVERSATION), "turnId": str(TURN), "replayed": False},
            },
            {"type": "start-step"},
            {"type": "tool-input-available", "toolCallId": "call_1", "toolName": "add_task"}
            | {"input": {"title": "Молоко"}, "dynamic": True},
            {"type": "tool-output-available", "toolCallId": "call_1", "output": {"id": 1}, "dynamic": True},
            {"type": "finish-step"},
            {"type": "start-step"},
            {"type": "text-start", "id": "0"},
            {"type": "text-delta", "id": "0", "delta": "Add"},
            {"type": "text-delta", "id": "0", "delta": "ed."},
            {"type": "text-end", "id": "0"},
            {"type": "finish-step"},
            {"type": "finish"},
        ]

    @pytest.mark.parametrize(
        ("result", "text"), [({"error": "No such task."}, "No such task."), ({"shortened": 1}, '{"shortened":1}')]
    )
    def test_a_failed_call_shows_its_error(self, result: dict[str, Any], text: str) -> None:
        """A result that was shortened may have lost it."""
        made = call(1, result, "error")
        chunk = chunks_of([accepted(), started(made), ToolFinished(made), finished(made)])[3]
        assert chunk == {"type": "tool-output-error", "toolCallId": "call_1", "errorText": text, "dynamic": True}

    def test_a_failure_closes_the_text_and_gives_the_problem(self) -> None:
        """`onError` gets title and detail."""
        chunks = chunks_of([accepted(), Text(0, "I w"), Failed(ModelFailed("It broke off."))])
        assert chunks[-2:] == [
            {"type": "text-end", "id": "0"},
            {"type": "error", "errorText": "The model failed to answer. It broke off."},
        ]

    def test_a_replay_builds_the_same_message(self) -> None:
        """Only the metadata says that it is one."""
        made = call(1, {})
        live = [accepted(), started(made), ToolFinished(made), Text(0, "Do"), Text(0, "ne."), finished(made)]
        replay = [accepted(replayed=True), started(made), ToolFinished(made), Text(0, "Done."), finished(made)]
        first, again = chunks_of(live), chunks_of(replay)
        assert read_ui_message(first) == read_ui_message(again)
        assert first[0]["messageId"] == again[0]["messageId"]
        assert (first[0]["messageMetadata"]["replayed"], again[0]["messageMetadata"]["replayed"]) == (False, True)

    def test_the_response_says_which_protocol_it_is(self) -> None:
        """A client may ask for the header."""
        assert AiSdkEncoder.headers == {"x-vercel-ai-ui-message-stream": "v1"}

    @given(turns())
    @settings(max_examples=150, deadline=None)
    def test_any_turn_is_in_the_protocols_order(self, events: list[Event]) -> None:
        """No client refuses a chunk, each text comes whole, and no client sends again by itself."""
        message = read_ui_message(chunks_of(events))
        texts = [event for event in events if isinstance(event, Text)]
        assert bool(texts) == any(part["type"] == "text" for part in message)
        if isinstance(events[-1], Finished):
            assert not is_sent_again(message)
