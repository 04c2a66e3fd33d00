"""Test the model's streamed answers, through the SDK's runner and from a provider that sends any bytes.

Promises: the text comes in parts. The last event holds the whole answer, checked like one that is not streamed. A call
is retried only before its first event. Each request is charged. A stream ends in time and within bounds.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from agents import Agent, FunctionTool, ModelSettings, ModelTracing, RunConfig, Runner
from openai.types.responses import ResponseCompletedEvent, ResponseRefusalDeltaEvent, ResponseTextDeltaEvent

from chat.model import MAX_EVENTS, ProviderModel
from chat.transport import MAX_STREAM_BYTES
from chat.usage import Usage, counting
from dev.standin_model.client import StandIn
from taskchat import deadline
from taskchat.errors import ModelFailed, OutOfTime
from taskchat.settings import Settings
from tests import raw_provider
from tests.conftest import run
from tests.domain import example
from tests.raw_provider import BLANKS, DRIP, OF_BYTES, RawProvider, Script, Shape, answer, call, chunk, head

Json = dict[str, Any]
BOTH_APIS = pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)
EVENTS = head(200, "Content-Type: text/event-stream")
END = b"0\r\n\r\n"


def model_at(url: str, api: str, **settings: Any) -> ProviderModel:
    """Return the model at an address."""
    known: Json = {"DATABASE_URL": "postgresql://u:p@localhost/d", "OPENAI_API_KEY": "sk-any", "MODEL": "stand-in"}
    return ProviderModel(Settings(**known | {"OPENAI_BASE_URL": url, "MODEL_API": api} | settings))


async def collect(model: ProviderModel, seconds: float, events: list[Any]) -> None:
    """Add the events of one streamed call to the list, for as many seconds, and close the model."""
    known: Any = ("Be brief.", "hello", ModelSettings(store=False), [], None, [], ModelTracing.DISABLED)
    try:
        with deadline.within(seconds):
            async for event in model.stream_response(
                *known, previous_response_id=None, conversation_id=None, prompt=None
            ):
                events.append(event)
    finally:
        await model.close()


def text_of(events: list[Any]) -> str:
    """Return the text that the events brought."""
    return "".join(each.delta for each in events if isinstance(each, ResponseTextDeltaEvent))


@BOTH_APIS
class TestRun:
    """The SDK's runner, against the stand-in model."""

    @pytest.mark.parametrize("settings", [{}, {"reasoning": {"effort": "low"}}], ids=["plain", "reasoning"])
    def test_it_ends_as_one_that_is_not_streamed(self, standin: StandIn, model_api: str, settings: Json) -> None:
        """The tools are called, the text of the deltas is the reply, and both runs cost the same."""
        known = ModelSettings(store=False, include_usage=True, **settings)
        if settings and model_api == "responses":
            known.response_include = ["reasoning.encrypted_content"]
        called: list[str] = []

        async def add(_context: Any, arguments: str) -> str:
            called.append(json.loads(arguments)[example.text])
            return json.dumps({"id": 1, **json.loads(arguments), example.state: example.states[0]}, default=str)

        schema: Json = {"type": "object", "properties": {example.text: {"type": "string"}}, "required": [example.text]}
        tool = FunctionTool(example.add_tool, "Add a thing.", schema, add)
        message = example.add("milk", "bread")

        async def both() -> tuple[Any, Any, list[Any]]:
            model = model_at(standin.base_url, model_api)
            agent = Agent(name="agent", model=model, tools=[tool], model_settings=known)
            quiet = RunConfig(tracing_disabled=True)
            with counting(whole):
                one = await Runner.run(agent, message, run_config=quiet)
            with counting(streamed):
                other = Runner.run_streamed(agent, message, run_config=quiet)
                events = [each.data async for each in other.stream_events() if each.type == "raw_response_event"]
            await model.close()
            return one.final_output, other.final_output, events

        whole, streamed = Usage(), Usage()
        one, other, events = run(both())
        assert one == other == text_of(events)
        assert "bread" in one
        assert called == ["milk", "bread"] * 2
        assert isinstance(events[-1], ResponseCompletedEvent)
        assert (streamed.requests, streamed.output_tokens) == (2, whole.output_tokens)
        assert (streamed.estimated_tokens, whole.estimated_tokens) == (0, 0)

    def test_a_refusal_is_streamed(self, standin: StandIn, model_api: str) -> None:
        """Its text comes in events of their own kind."""
        standin.fault("refusal", match="hello")
        events: list[Any] = []
        run(collect(model_at(standin.base_url, model_api), 30, events))
        assert {type(each) for each in events} == {ResponseRefusalDeltaEvent, ResponseCompletedEvent}
        assert events[-1].response.output[-1].content[0].refusal == "".join(each.delta for each in events[:-1])

    @pytest.mark.parametrize(("fault", "error"), [("length", "cut short"), ("content_filter", "withheld")])
    def test_an_incomplete_answer_is_refused(self, standin: StandIn, model_api: str, fault: str, error: str) -> None:
        """A part of its text was sent, but there is no last event."""
        standin.fault(fault, match="hello")
        events: list[Any] = []
        with pytest.raises(ModelFailed, match=error):
            run(collect(model_at(standin.base_url, model_api), 30, events))
        assert not any(isinstance(each, ResponseCompletedEvent) for each in events)

    @pytest.mark.parametrize("fault", ["server_error", "rate_limit", "disconnect"])
    def test_a_passing_fault_is_retried(self, standin: StandIn, model_api: str, fault: str) -> None:
        """The call had no event yet."""
        standin.fault(fault, match="hello")
        events: list[Any] = []
        run(collect(model_at(standin.base_url, model_api), 30, events))
        assert text_of(events)
        assert len(standin.requests()) == 2

    def test_the_fallback_answers(self, standin: StandIn, model_api: str) -> None:
        """It has half of the time when the first model hangs."""
        standin.fault("hang", match="hello", seconds=40)
        events: list[Any] = []
        run(collect(model_at(standin.base_url, model_api, MODEL_FALLBACK="second-choice"), 4, events))
        assert text_of(events)
        assert [each["body"]["model"] for each in standin.requests()] == ["stand-in", "second-choice"]


def sse(*events: Any) -> bytes:
    """Return server-sent events with this data, in one chunk."""
    return chunk(b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in events))


def delta(api: str, text: str = "Do") -> Json:
    """Return an event that brings text."""
    if api == "responses":
        return {"type": "response.output_text.delta", "delta": text, "item_id": "m", "output_index": 0}
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def last(api: str, items: list[Json]) -> list[Json]:
    """Return the events that end a stream, with these calls."""
    if api == "responses":
        return [{"type": "response.completed", "response": answer(api, items)}]
    calls = [{"index": index, **item} for index, item in enumerate(items)]
    return [{"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": "stop"}]}]


def stream(*parts: Any, items: tuple[Json, ...] = (), ends: bool = True) -> Shape:
    """Return an answer of one delta, then these parts: bytes, pauses, or events."""

    def shape(api: str) -> Script:
        yield EVENTS + sse(delta(api))
        for part in parts:
            yield part if isinstance(part, bytes | float) else sse(part)
        if ends:
            yield sse(*last(api, [call(api) for _ in items])) + END

    return shape


def forever(first: bytes, again: bytes, pause: float | None = None) -> Shape:
    """Return an answer that repeats bytes, each time after a pause."""

    def shape(api: str) -> Script:
        yield EVENTS + sse(delta(api)) + first
        while True:
            yield again
            yield from [pause] if pause else []

    return shape


def nested(api: str) -> Script:
    """Send an event that is nested too deeply."""
    yield EVENTS + sse(delta(api)) + chunk(b"data: " + b"[" * 100_000 + b"\n\n") + END


AFTER_TEXT: dict[str, tuple[Shape, str]] = {
    "it breaks off": (stream(ends=False), "cannot be reached"),
    "it ends without an end": (stream(END, ends=False), "could not be read"),
    "an event that is no JSON": (stream(chunk(b"data: {\n\n"), ends=False), "could not be read"),
    "an event that is no UTF-8": (stream(chunk(b'data: "\xff"\n\n'), ends=False), "could not be read"),
    "an event that is nested too deeply": (nested, "could not be read"),
    "an error of the provider": (stream({"type": "error", "error": {"message": "x"}}), "could not be read"),
    "text without end": (forever(b"", chunk(b'data: {"type": "x", "y": "' + b"y" * 60_000 + b'"}\n\n')), "too long"),
    "one endless event": (forever(b"", chunk(b"data: " + BLANKS)), "too long"),
    "events without end": (forever(b"", chunk(b"data: {}\n\n" * 1_000)), "too long"),
    "more calls than a turn may make": (stream(items=({},) * 65), "too long"),
    "more values than an answer may have": (stream(items=({},) * 2_000), "too long"),
}


@pytest.fixture
def provider() -> Iterator[RawProvider]:
    """Serve a provider that sends any bytes."""
    with raw_provider.running() as running:
        yield running


@BOTH_APIS
class TestUntrustedProvider:
    """The provider may send any bytes for any time."""

    @pytest.mark.parametrize("what", AFTER_TEXT)
    def test_after_the_first_event_a_fault_ends_the_call(
        self, provider: RawProvider, model_api: str, what: str
    ) -> None:
        """Neither the model nor the fallback is called again, because part of the text was passed on."""
        shape, error = AFTER_TEXT[what]
        provider.shapes = [shape]
        events, usage = [], Usage()
        with counting(usage), pytest.raises(ModelFailed, match=error):
            run(collect(model_at(provider.url, model_api, MODEL_FALLBACK="second-choice"), 30, events))
        assert text_of(events) == "Do"
        assert len(provider.requests) == 1
        assert usage.estimated_tokens > 0

    @pytest.mark.parametrize("what", ["nothing", "a word", "no HTTP", "a gigabyte in gzip", "an endless head"])
    def test_before_the_first_event_a_call_is_retried(self, provider: RawProvider, model_api: str, what: str) -> None:
        """The model is called three times, and then the fallback."""
        provider.shapes = [OF_BYTES[what]] * 3 + [stream()]
        events: list[Any] = []
        run(collect(model_at(provider.url, model_api, MODEL_FALLBACK="second-choice"), 30, events))
        assert [body["model"] for body in provider.requests] == ["stand-in"] * 3 + ["second-choice"]
        assert isinstance(events[-1], ResponseCompletedEvent)

    def test_a_call_is_retried_when_the_answer_is_no_stream(self, provider: RawProvider, model_api: str) -> None:
        """A whole answer holds no event."""
        provider.shapes = [raw_provider.good_answer, stream()]
        events: list[Any] = []
        run(collect(model_at(provider.url, model_api), 30, events))
        assert len(provider.requests) == 2

    @pytest.mark.parametrize("shape", [forever(b"", chunk(b": x\n\n"), DRIP), forever(b"", b"", DRIP)])
    def test_a_slow_stream_ends_with_the_deadline(self, provider: RawProvider, model_api: str, shape: Shape) -> None:
        """Each event has the deadline of the request, also without a timeout around the run."""
        provider.shapes = [shape]
        events, usage = [], Usage()
        with counting(usage), pytest.raises(OutOfTime):
            run(collect(model_at(provider.url, model_api), 0.5, events))
        assert text_of(events) == "Do"
        assert usage.estimated_tokens > 0

    def test_calls_have_ids_and_arguments_of_ours(self, provider: RawProvider, model_api: str) -> None:
        """They are those of an answer that is not streamed. Text comes as it was sent: see test_reply_text.py."""
        made = [call(model_api, "[" * 500, name="f"), call(model_api, "{}", name="")]
        provider.shapes = [lambda api: iter([EVENTS + sse(delta(api, "\ud800"), *last(api, made)) + END])]
        events: list[Any] = []
        run(collect(model_at(provider.url, model_api), 30, events))
        calls = [item for item in events[-1].response.output if item.type == "function_call"]
        assert [(each.name, each.arguments) for each in calls] == [("f", "null"), ("unnamed", "{}")]
        assert len({each.call_id for each in calls} - {"c"}) == 2
        assert text_of(events) == "\ud800"

    def test_a_stream_that_is_closed_early_is_charged(self, provider: RawProvider, model_api: str) -> None:
        """The model had worked on it."""
        provider.shapes = [forever(b"", sse(delta(model_api)))]
        usage = Usage()

        async def leave() -> None:
            model = model_at(provider.url, model_api)
            known: Any = ("Be brief.", "hello", ModelSettings(), [], None, [], ModelTracing.DISABLED)
            events: Any = model.stream_response(*known, previous_response_id=None, conversation_id=None, prompt=None)
            await anext(events)
            await events.aclose()
            await model.close()

        with counting(usage):
            run(leave())
        assert usage.estimated_tokens > 0


@BOTH_APIS
def test_a_request_that_cannot_be_written_is_not_sent(provider: RawProvider, model_api: str) -> None:
    """The fault is the program's, so the call is not retried, and nothing is charged."""
    usage = Usage()
    with counting(usage), pytest.raises(UnicodeEncodeError):
        run(collect(model_at(provider.url, model_api, OPENAI_API_KEY="ké"), 30, []))
    assert (provider.requests, usage.tokens) == ([], 0)


def test_the_bounds_leave_room_for_the_longest_answer() -> None:
    """It has 8,000 tokens, each in an event of 300 bytes as from OpenAI, and the text four times more at the end."""
    assert 8_000 * 300 + 4 * 8_000 * 10 < MAX_STREAM_BYTES
    assert MAX_EVENTS > 8_000 * 2
