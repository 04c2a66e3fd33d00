"""The stand-in model keeps its promises over real HTTP, to the OpenAI client and the Agents SDK."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import openai
import pytest
from agents import Agent, FunctionTool, ModelSettings, RunConfig, Runner
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from openai.types.responses.response_stream_event import ResponseStreamEvent
from openai.types.shared import Reasoning
from pydantic import TypeAdapter

from dev.standin_model import StandIn, running
from dev.standin_model.failures import BROKEN_JSON, FAULTS, parameters
from tests.domain import example

Json = dict[str, Any]
Items = list[Any]

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "stand-in-model.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table under a heading of docs/stand-in-model.md."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def function(name: str, *names: str, required: tuple[str, ...] = ()) -> Json:
    """Return a function's name and schema, as both APIs take it."""
    properties = {each: {"type": ["string", "integer", "null"]} for each in names}
    return {"name": name, "parameters": {"type": "object", "properties": properties, "required": list(required)}}


FUNCTIONS = [
    function(example.add_tool, *example.call_add("milk")["arguments"]),
    function(example.list_tool),
    function(example.delete_tool, *example.call_delete(1)["arguments"]),
]
ADD, ADD_TWO = example.add("milk"), example.add("milk", "bread")
ARGUMENTS = example.call_add("milk")["arguments"]


class Tools:
    """Fail each call. A domain's tests return what its tools return."""

    def run(self, name: str, arguments: str) -> str:
        """Return the output of a call."""
        return "The tool failed."


@dataclass
class Reply:
    """Hold one answer of the model, from any of the four ways."""

    text: str | None = None
    refusal: str | None = None
    calls: list[Json] = field(default_factory=list)
    stopped: str | None = None
    usage: Any = None


@dataclass
class Way:
    """Ask in one of four ways: either API, plain or streamed. The history has Responses items for both."""

    api: str
    streamed: bool
    client: OpenAI
    functions: list[Json] = field(default_factory=lambda: FUNCTIONS)

    def ask(self, message: str | Items, **options: Any) -> Reply:
        history = [{"role": "user", "content": message}] if isinstance(message, str) else message
        tools = options.pop("tools", self.functions)
        if self.api == "responses":
            return self._responses(history, [{"type": "function", "strict": False} | tool for tool in tools], options)
        return self._chat(_messages(history), [{"type": "function", "function": tool} for tool in tools], options)

    def _responses(self, history: Items, tools: Items, options: Json) -> Reply:
        answer: Any = self.client.responses.create(
            model="any", input=history, tools=tools, stream=self.streamed, **options
        )
        if not self.streamed:
            return _from_response(answer)
        events = list(answer)
        reply = _from_response(events[-1].response)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert _deltas(events, "output_text") == (reply.text or "")
        assert _deltas(events, "refusal") == (reply.refusal or "")
        assert _deltas(events, "function_call_arguments") == "".join(call["arguments"] for call in reply.calls)
        return reply

    def _chat(self, messages: Items, tools: Items, options: Json) -> Reply:
        streaming = {"stream": True, "stream_options": {"include_usage": True}} if self.streamed else {}
        answer: Any = self.client.chat.completions.create(
            model="any", messages=messages, tools=tools, **streaming, **options
        )
        return _from_chunks(list(answer)) if self.streamed else _from_completion(answer)


def _deltas(events: Items, kind: str) -> str:
    return "".join(event.delta for event in events if event.type == f"response.{kind}.delta")


def _messages(history: Items) -> Items:
    """Convert Responses items to chat messages."""
    messages: Items = []
    for item in history:
        if item.get("type") == "function_call":
            call = {"name": item["name"], "arguments": item["arguments"]}
            if not (messages and messages[-1].get("tool_calls")):
                messages.append({"role": "assistant", "tool_calls": []})
            messages[-1]["tool_calls"].append({"id": item["call_id"], "type": "function", "function": call})
        elif item.get("type") == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        else:
            messages.append(item)
    return messages


def _from_response(response: Response) -> Reply:
    reply = Reply(stopped=response.incomplete_details and response.incomplete_details.reason, usage=response.usage)
    for item in response.output:
        if item.type == "message":
            for part in item.content:
                if part.type == "refusal":
                    reply.refusal = part.refusal
                else:
                    reply.text = part.text
        elif item.type == "function_call":
            reply.calls.append({"call_id": item.call_id, "name": item.name, "arguments": item.arguments})
    return reply


def _from_completion(completion: ChatCompletion) -> Reply:
    [choice] = completion.choices
    calls: Any = choice.message.tool_calls or []
    named = [{"call_id": c.id, "name": c.function.name, "arguments": c.function.arguments} for c in calls]
    message = choice.message
    return Reply(message.content, message.refusal, named, _stopped(choice.finish_reason), completion.usage)


def _from_chunks(chunks: list[ChatCompletionChunk]) -> Reply:
    reply = Reply(usage=chunks[-1].usage)
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        reply.stopped = _stopped(choice.finish_reason)
        reply.text = _joined(reply.text, choice.delta.content)
        reply.refusal = _joined(reply.refusal, choice.delta.refusal)
        for piece in choice.delta.tool_calls or []:
            if piece.id:
                reply.calls.append({"call_id": piece.id, "name": piece.function.name, "arguments": ""})
            reply.calls[piece.index]["arguments"] += piece.function.arguments
    return reply


def _joined(text: str | None, delta: str | None) -> str | None:
    return text if delta is None else (text or "") + delta


def _stopped(finish_reason: str | None) -> str | None:
    return {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish_reason or "")


def made(calls: list[Json], toolbox: Tools) -> Items:
    """Return the calls and their outputs as input items."""
    outputs = [
        {
            "type": "function_call_output",
            "call_id": call["call_id"],
            "output": toolbox.run(call["name"], call["arguments"]),
        }
        for call in calls
    ]
    return [{"type": "function_call"} | call for call in calls] + outputs


def run_turn(way: Way, history: Items, message: str, toolbox: Tools, **options: Any) -> tuple[list[list[str]], str]:
    """Run a turn, and return the tools called in each response and the final text. Add the turn to the history."""
    history.append({"role": "user", "content": message})
    rounds = []
    while (reply := way.ask(history, **options)).calls:
        rounds.append([call["name"] for call in reply.calls])
        history.extend(made(reply.calls, toolbox))
    history.append({"role": "assistant", "content": reply.text})
    assert reply.text is not None
    return rounds, reply.text


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    """Run one stand-in for all tests here."""
    with running() as model:
        yield model


@pytest.fixture
def model(server: StandIn) -> StandIn:
    """Give the stand-in as if it had just started."""
    server.reset()
    return server


@pytest.fixture(scope="module")
def client(server: StandIn) -> Iterator[OpenAI]:
    """Give the OpenAI client, without retries."""
    with OpenAI(base_url=server.base_url, api_key="any", max_retries=0, timeout=20) as client:
        yield client


WAYS = [("responses", False), ("responses", True), ("chat", False), ("chat", True)]


@pytest.fixture(params=WAYS, ids=["responses", "responses-streamed", "chat", "chat-streamed"])
def way(request: pytest.FixtureRequest, model: StandIn, client: OpenAI) -> Way:
    """Give each of the four ways to ask."""
    return Way(*request.param, client)


@pytest.fixture
def plain(model: StandIn, client: OpenAI) -> Way:
    """Give one way to ask, for tests that do not depend on the way."""
    return Way("responses", False, client)


# The two APIs


def test_responses_have_the_shape_of_the_real_api(model: StandIn, client: OpenAI) -> None:
    """Each response and each event has the fields that the SDK's types require, with allowed values."""
    event = TypeAdapter[Any](ResponseStreamEvent)
    for message in (ADD_TWO, "hello", "stand-in: refusal", "stand-in: length", "stand-in: content filter"):
        body = {"model": "any", "input": message, "tools": [{"type": "function", "strict": False} | FUNCTIONS[0]]}
        body["include"] = ["reasoning.encrypted_content"]
        Response.model_validate_json(_raw(client, "/responses", body))
        for kind, data in _events(_raw(client, "/responses", body | {"input": f"{message}!", "stream": True})):
            assert event.validate_json(data).type == kind


def test_completions_have_the_shape_of_the_real_api(model: StandIn, client: OpenAI) -> None:
    """Each completion and each chunk does too. The stream ends with [DONE]."""
    for message in (ADD_TWO, "hello", "stand-in: refusal", "stand-in: length", "stand-in: content filter"):
        body: Json = {"model": "any", "tools": [{"type": "function", "function": FUNCTIONS[0]}]}
        ChatCompletion.model_validate_json(_raw(client, "/chat/completions", body | _asking(message)))
        *chunks, done = _events(_raw(client, "/chat/completions", body | _asking(f"{message}!") | {"stream": True}))
        assert done == ("", "[DONE]")
        for _, data in chunks:
            ChatCompletionChunk.model_validate_json(data)


def _asking(message: str) -> Json:
    return {"messages": [{"role": "user", "content": message}]}


def _raw(client: OpenAI, path: str, body: Json) -> str:
    return client.post(path, body=body, cast_to=str)


def _events(stream: str) -> list[tuple[str, str]]:
    found = re.findall(r"(?:event: (\S+)\n)?data: (.*)\n\n", stream)
    assert (
        "".join(f"event: {kind}\ndata: {data}\n\n" if kind else f"data: {data}\n\n" for kind, data in found) == stream
    )
    return found


def test_ids_look_like_the_real_ones(model: StandIn, client: OpenAI) -> None:
    """Each id has its prefix and is unique."""
    tool: Any = {"type": "function", "strict": False} | FUNCTIONS[0]
    one, two = (client.responses.create(model="any", input=ADD, tools=[tool]) for _ in range(2))
    call: Any = one.output[0]
    assert (one.id[:5], call.id[:3], call.call_id[:5]) == ("resp_", "fc_", "call_")
    other: Any = two.output[0]
    assert {one.id, call.id, call.call_id}.isdisjoint({two.id, other.id, other.call_id})
    completion = client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hello"}])
    assert completion.id.startswith("chatcmpl-")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/responses", {"input": "hello"}),
        ("/responses", {"model": "any"}),
        ("/responses", {"model": "any", "input": 1}),
        ("/responses", {"model": "any", "input": ["hello"]}),
        ("/responses", {"model": "any", "input": [{"role": "wizard", "content": "hello"}]}),
        ("/responses", {"model": "any", "input": [{"role": "user", "content": [{"type": "output_text", "text": ""}]}]}),
        ("/responses", {"model": "any", "input": [{"role": "assistant", "content": [{"type": "input_text"}]}]}),
        ("/responses", {"model": "any", "input": [{"type": "telepathy"}]}),
        ("/responses", {"model": "any", "input": "hello", "tools": [{"type": "function", "function": FUNCTIONS[0]}]}),
        ("/responses", {"model": "any", "input": "hello", "previous_response_id": "resp_1"}),
        ("/chat/completions", {"model": "any", "messages": []}),
        ("/chat/completions", {"model": "any", "messages": [{"role": "wizard", "content": "hello"}]}),
        ("/chat/completions", {"model": "any", **_asking("hello"), "tools": [{"type": "function"} | FUNCTIONS[0]]}),
    ],
)
def test_malformed_requests_are_refused(path: str, body: Json, model: StandIn, client: OpenAI) -> None:
    """The answer is a 400, and its error object names the fault."""
    with pytest.raises(openai.BadRequestError) as caught:
        _raw(client, path, body)
    error: Any = caught.value
    assert error.body.keys() == {"message", "type", "param", "code"}
    assert (error.type, bool(error.param)) == ("invalid_request_error", True)


@pytest.mark.parametrize("content", [b"{", b"[]", b'"\xff"'])
def test_a_body_that_is_no_json_object_is_refused(content: bytes, model: StandIn, client: OpenAI) -> None:
    """The answer is a 400."""
    with pytest.raises(openai.BadRequestError):
        client.post("/responses", content=content, cast_to=str)


CALL = {"type": "function_call", "call_id": "c", "name": example.add_tool, "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "{}"}
USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize("history", [[USER, CALL], [USER, OUTPUT], [USER, OUTPUT, CALL], [USER, CALL, OUTPUT, OUTPUT]])
def test_calls_and_outputs_must_match(history: Items, way: Way) -> None:
    """A call without its output, or an output without its call, is refused."""
    with pytest.raises(openai.BadRequestError):
        way.ask(history)


def test_a_tool_message_must_follow_its_call(client: OpenAI, model: StandIn) -> None:
    """In chat completions no other message may stand between the two."""
    with pytest.raises(openai.BadRequestError):
        Way("chat", False, client).ask([USER, CALL, USER, OUTPUT])


def test_a_key_is_required(way: Way, model: StandIn) -> None:
    """The server accepts any bearer key, and does not record it."""
    way.ask("hello")
    keyless = way.client.with_options(default_headers={"Authorization": "Basic any"})
    with pytest.raises(openai.AuthenticationError):
        Way(way.api, way.streamed, keyless).ask("hello")
    accepted, refused = model.requests()
    assert (accepted["status"], refused["status"]) == (200, 401)
    assert accepted["headers"]["authorization"] == "Bearer ***"


def test_models_and_health_are_served(model: StandIn, client: OpenAI) -> None:
    """A client may ask whether the server runs."""
    assert [each.id for each in client.models.list()] == ["stand-in"]
    assert client.get("/../healthz", cast_to=object) == {"status": "ok"}
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)


def test_reasoning_belongs_to_its_calls(model: StandIn, client: OpenAI) -> None:
    """A call is sent again with its reasoning or without its id. An id alone is refused."""
    create: Callable[..., Any] = client.responses.create
    options: Json = {"model": "any", "store": False, "include": ["reasoning.encrypted_content"]}
    options["tools"] = [{"type": "function", "strict": False} | FUNCTIONS[0]]
    reasoning, call = (item.model_dump(exclude_none=True) for item in create(input=ADD, **options).output)
    user, output = {"role": "user", "content": ADD}, OUTPUT | {"call_id": call["call_id"]}
    without_id = {name: value for name, value in call.items() if name != "id"}
    bare = {name: value for name, value in reasoning.items() if name != "encrypted_content"}

    create(input=[user, reasoning, call, output], **options)
    create(input=[user, without_id, output], **options)
    for refused in ([user, call, output], [user, reasoning], [user, reasoning, user]):
        with pytest.raises(openai.BadRequestError):
            create(input=refused, **options)
    for lost in ([user, bare, call, output], [user, {"type": "item_reference", "id": reasoning["id"]}]):
        with pytest.raises(openai.NotFoundError):
            create(input=lost, **options)


def test_calls_without_reasoning_keep_their_ids(model: StandIn, client: OpenAI) -> None:
    """A model that does not reason accepts them."""
    create: Callable[..., Any] = client.responses.create
    tools = [{"type": "function", "strict": False} | FUNCTIONS[0]]
    [call] = create(model="any", input=ADD, tools=tools).output
    replayed = [USER, call.model_dump(exclude_none=True), OUTPUT | {"call_id": call.call_id}]
    assert create(model="any", input=replayed, tools=tools).status == "completed"


def _cached(reply: Reply) -> tuple[int, int]:
    """Return the tokens of the prompt, and how many of them were cached."""
    if hasattr(reply.usage, "prompt_tokens"):
        return reply.usage.prompt_tokens, reply.usage.prompt_tokens_details.cached_tokens
    return reply.usage.input_tokens, reply.usage.input_tokens_details.cached_tokens


def test_a_repeated_prefix_is_cached(way: Way) -> None:
    """A history that grows at its end leaves the earlier prompt cached, and a change at its beginning does not."""
    front = function(f"front_{way.api}_{way.streamed}")
    before, _ = _cached(way.ask([USER], tools=[front, *FUNCTIONS]))
    longer, cached = _cached(way.ask([USER, {"role": "assistant", "content": "Hi."}, USER], tools=[front, *FUNCTIONS]))
    assert before - 2 <= cached <= before < longer
    changed = function(f"changed_{way.api}_{way.streamed}")
    _, cached = _cached(way.ask([USER], tools=[changed, *FUNCTIONS]))
    assert cached < before / 4


def test_usage_adds_up(way: Way) -> None:
    """Input and output tokens are positive, and make the total."""
    usage = way.ask("hello").usage.model_dump()
    total = usage.pop("total_tokens")
    parts = [number for number in usage.values() if isinstance(number, int)]
    assert all(parts)
    assert sum(parts) == total


# The Agents SDK


def add_tool(calls: list[Json]) -> FunctionTool:
    """Return the agent's tool, which appends the arguments of each call to the list."""

    async def invoke(_: Any, arguments: str) -> str:
        calls.append(json.loads(arguments))
        return "The tool failed."

    return FunctionTool(example.add_tool, "Add a thing.", FUNCTIONS[0]["parameters"], invoke, strict_json_schema=False)


AGENT_MODELS = [OpenAIResponsesModel, OpenAIChatCompletionsModel]
REASONING = ModelSettings(
    store=False, reasoning=Reasoning(effort="low"), response_include=["reasoning.encrypted_content"]
)


async def _run_agent(base_url: str, kind: Any, settings: ModelSettings, *, streamed: bool) -> list[Json]:
    calls: list[Json] = []
    async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        agent = Agent(
            name="agent",
            model=kind(model="any", openai_client=client),
            tools=[add_tool(calls)],
            model_settings=settings,
        )
        quiet = RunConfig(tracing_disabled=True)
        if not streamed:
            await Runner.run(agent, ADD_TWO, run_config=quiet)
            return calls
        result = Runner.run_streamed(agent, ADD_TWO, run_config=quiet)
        async for _ in result.stream_events():
            pass
        return calls


def run_agent(base_url: str, kind: Any, settings: ModelSettings, *, streamed: bool) -> list[Json]:
    """Run the agent, and return the arguments of its tool calls."""
    return asyncio.run(_run_agent(base_url, kind, settings, streamed=streamed))


@pytest.fixture(scope="module")
def sdk_process() -> Iterator[ProcessPoolExecutor]:
    """Run a process with the whole SDK. The program, and so the tests, import it without its streaming modules."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("settings", [ModelSettings(), REASONING], ids=["plain", "reasoning"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", AGENT_MODELS)
def test_the_agents_sdk_runs_on_it(
    kind: Any, streamed: bool, settings: ModelSettings, model: StandIn, sdk_process: ProcessPoolExecutor
) -> None:
    """A run calls a tool with both APIs, plain and streamed, with and without reasoning items."""
    if kind is OpenAIChatCompletionsModel and settings is REASONING:
        settings = ModelSettings()
    calls = sdk_process.submit(run_agent, model.base_url, kind, settings, streamed=streamed).result()
    assert calls == [example.call_add(text)["arguments"] for text in ("milk", "bread")]


# Faults


def test_every_fault_is_documented() -> None:
    """The document lists the same faults with the same parameters."""
    documented = {name: {each for each in given.split(", ") if each} for name, given, _ in table("Faults")}
    assert documented == {name: set(parameters(name)) for name in FAULTS}


ERRORS: dict[str, tuple[type[Exception], int, str | None]] = {
    "rate_limit": (openai.RateLimitError, 429, "rate_limit_exceeded"),
    "quota": (openai.RateLimitError, 429, "insufficient_quota"),
    "unauthorized": (openai.AuthenticationError, 401, "invalid_api_key"),
    "server_error": (openai.InternalServerError, 500, None),
    "unavailable": (openai.InternalServerError, 503, None),
    "context_length_exceeded": (openai.BadRequestError, 400, "context_length_exceeded"),
    "bad_gateway": (openai.InternalServerError, 502, None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_arrives_once(name: str, way: Way, model: StandIn) -> None:
    """The client raises the same exception as for the real API. The record has the fault and the status."""
    kind, status, code = ERRORS[name]
    model.fault(name)
    with pytest.raises(kind) as caught:
        way.ask("hello")
    error: Any = caught.value
    assert (error.status_code, error.code) == (status, code)
    assert way.ask("hello").text
    assert [(record["fault"], record["status"]) for record in model.requests()] == [(name, status), (None, 200)]


def test_a_bad_gateway_answers_html(plain: Way, model: StandIn) -> None:
    """A proxy in front of the real API does."""
    model.fault("bad_gateway")
    with pytest.raises(openai.InternalServerError) as caught:
        plain.ask("hello")
    assert caught.value.response.headers["content-type"].startswith("text/html")


def test_rate_limits_have_retry_headers(plain: Way, model: StandIn) -> None:
    """They are in seconds, and also in milliseconds if the test sets them."""
    model.fault("rate_limit", retry_after=2, retry_after_ms=1500)
    with pytest.raises(openai.RateLimitError) as caught:
        plain.ask("hello")
    headers = caught.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1500")


def test_the_clients_retries_succeed(plain: Way, model: StandIn) -> None:
    """The fault happens twice, and the client tries three times."""
    model.fault("rate_limit", times=2, retry_after_ms=1)
    assert Way("responses", False, plain.client.with_options(max_retries=2)).ask("hello").text
    assert [record["status"] for record in model.requests()] == [429, 429, 200]


@pytest.mark.parametrize("name", ["disconnect", "disconnect_midway"])
def test_a_dropped_connection_is_an_error(name: str, way: Way, model: StandIn) -> None:
    """The connection ends before the answer or in its middle."""
    model.fault(name)
    with pytest.raises(openai.APIConnectionError):
        way.ask(ADD)
    assert way.ask("hello").text


BODIES: dict[str, str] = {
    "empty_body": "",
    "malformed_body": BROKEN_JSON,
    "wrong_schema": '{"result":"ok","items":[]}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/responses", "/chat/completions"])
def test_a_broken_body_is_sent_as_it_is(path: str, name: str, model: StandIn, client: OpenAI) -> None:
    """The status is 200. In a stream the body is one event."""
    body = {"model": "any", "input": "hello", **_asking("hello")}
    model.fault(name, times=2)
    assert _raw(client, path, body) == BODIES[name]
    streamed = f"data: {BODIES[name]}\n\n" if BODIES[name] else ""
    assert _raw(client, path, body | {"stream": True}) == streamed


@pytest.mark.parametrize("name", ["hang", "slow"])
def test_a_hanging_request_continues_when_released(name: str, way: Way, model: StandIn) -> None:
    """A test of a slow model need not wait."""
    model.fault(name)
    with ThreadPoolExecutor() as threads:
        reply = threads.submit(way.ask, "hello")
        assert model.waiting(at_least=1) == 1
        model.release()
        assert reply.result().text
    assert model.waiting() == 0


def test_a_hanging_request_ends_after_its_seconds(way: Way, model: StandIn) -> None:
    """Then it gets a normal answer."""
    model.fault("hang", seconds=0.01)
    assert way.ask("hello").text


def test_a_hanging_request_ends_with_its_client(way: Way, model: StandIn) -> None:
    """The server notices that the client closed the connection."""
    model.fault("hang")
    with pytest.raises(openai.APITimeoutError):
        Way(way.api, way.streamed, way.client.with_options(timeout=0.1)).ask("hello")
    while model.waiting():
        continue
    assert model.requests()[0]["status"] == 499


def test_the_server_stops_while_requests_hang() -> None:
    """The hanging request gets its answer, and no thread stays."""
    before = threading.active_count()
    with ThreadPoolExecutor() as threads:
        with running() as model:
            client = OpenAI(base_url=model.base_url, api_key="any", max_retries=0)
            model.fault("hang", seconds=600)
            reply = threads.submit(Way("responses", False, client).ask, "hello")
            model.waiting(at_least=1)
        assert reply.result(timeout=5).text
    client.close()
    assert threading.active_count() == before


# Streamed answers


@pytest.fixture(params=["responses", "chat"])
def streamed(request: pytest.FixtureRequest, model: StandIn, client: OpenAI) -> Way:
    """Give each of the two ways to ask for a stream."""
    return Way(request.param, True, client)


def texts(way: Way, message: str = "hello") -> Iterator[str]:
    """Ask, and yield each piece of text when it arrives."""
    client: Any = way.client
    if way.api == "responses":
        for event in client.responses.create(model="any", input=message, stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta
    else:
        for chunk in client.chat.completions.create(model="any", **_asking(message), stream=True):
            yield from (choice.delta.content for choice in chunk.choices if choice.delta.content)


def test_a_paused_answer_waits_after_its_pieces(streamed: Way, model: StandIn) -> None:
    """The client has these pieces, and gets the others after the release."""
    model.fault("pause", pieces=2)
    arriving = texts(streamed)
    first = next(arriving) + next(arriving)
    assert model.waiting(at_least=1) == 1
    assert model.requests()[0]["pieces"] == 2
    model.release()
    assert first + "".join(arriving) == "".join(texts(streamed))
    assert model.waiting() == 0


@pytest.mark.parametrize("pieces", [0, 1, 1000])
def test_a_paused_answer_is_whole(pieces: int, streamed: Way, model: StandIn) -> None:
    """A pause may come before the first event, or before the last ones. Arguments count as pieces."""
    model.fault("pause", pieces=pieces)
    with ThreadPoolExecutor() as threads:
        reply = threads.submit(streamed.ask, ADD)
        model.waiting(at_least=1)
        model.release()
        assert [json.loads(call["arguments"]) for call in reply.result().calls] == [ARGUMENTS]
    assert reply.result().usage.total_tokens > 0


def test_a_paused_answer_ends_with_its_client(streamed: Way, model: StandIn) -> None:
    """The server notices that the client left."""
    model.fault("pause")
    with OpenAI(base_url=model.base_url, api_key="any", max_retries=0) as client:
        next(texts(Way(streamed.api, True, client)))
        model.waiting(at_least=1)
    while model.waiting():
        continue


def test_the_server_stops_while_streams_wait() -> None:
    """A pause ends, and the pieces that drip come at once."""
    with ThreadPoolExecutor() as threads:
        with running() as model:
            client = OpenAI(base_url=model.base_url, api_key="any", max_retries=0)
            model.fault("pause", seconds=600)
            model.fault("drip", milliseconds=600_000, tokens=10)
            replies = [threads.submit(Way("chat", True, client).ask, "hello") for _ in range(2)]
            model.waiting(at_least=1)
            while [record["status"] for record in model.requests()] != [200, 200]:
                continue
        assert all(reply.result(timeout=5).text for reply in replies)
    client.close()


def test_a_stream_breaks_off_after_its_pieces(streamed: Way, model: StandIn) -> None:
    """The client has these pieces, and then an error."""
    model.fault("break_off", pieces=3)
    arriving = texts(streamed)
    arrived = [next(arriving) for _ in range(3)]
    with pytest.raises(openai.APIConnectionError):
        next(arriving)
    assert arrived == list(texts(streamed))[:3]


@pytest.mark.parametrize("path", ["/responses", "/chat/completions"])
def test_a_stream_is_cut_without_its_last_events(path: str, model: StandIn, client: OpenAI) -> None:
    """The body ends in good order. It has all pieces, or as many as the test sets."""
    body = {"model": "any", "input": "hello", **_asking("hello"), "stream": True}
    whole = _pieces(_raw(client, path, body))
    for pieces in (None, 2, 0):
        model.fault("cut_stream", pieces=pieces)
        cut = _raw(client, path, body)
        assert _pieces(cut) == whole[:pieces]
        assert not re.search(r"response.completed|\[DONE\]|\"stop\"", cut)


def _pieces(stream: str) -> list[str]:
    """Return the pieces of text in a stream of either API."""
    events = [json.loads(data) for _, data in _events(stream) if data != "[DONE]"]
    deltas = [event["delta"] for event in events if event.get("type") == "response.output_text.delta"]
    choices = [choice for event in events for choice in event.get("choices", ())]
    return deltas + [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]


def test_a_dripping_answer_comes_in_pieces(streamed: Way, model: StandIn) -> None:
    """The text has as many words as the test sets, or is the usual one. The first piece's time is recorded."""
    model.fault("drip", milliseconds=1, tokens=20)
    before = time.monotonic()
    assert list(texts(streamed)) == ["word "] * 20
    [record] = model.requests()
    assert before < record["first_piece"] < time.monotonic() - 0.019
    assert record["pieces"] == 20
    model.fault("drip", milliseconds=0)
    assert [call["name"] for call in streamed.ask(ADD).calls] == [example.add_tool]


@pytest.mark.parametrize("name", ["split_surrogates", "split_blanks"])
def test_a_text_is_split_at_any_place(name: str, streamed: Way, model: StandIn) -> None:
    """Each piece is half of an emoji, a blank or another UTF-16 code unit. Together they are the text."""
    model.fault(name)
    arrived = list(texts(streamed))
    assert all(len(piece) == 1 for piece in arrived)
    together = "".join(arrived).encode("utf-16", "surrogatepass").decode("utf-16")
    assert ("\ud83d" in arrived, together != together.strip()) == (name == "split_surrogates", name == "split_blanks")
    model.fault(name)
    assert Way(streamed.api, False, streamed.client).ask("hello").text == together


# Texts and calls


def test_a_text_comes_before_the_calls(way: Way, model: StandIn) -> None:
    """Both are in one answer."""
    model.fault("preamble", text="One moment.")
    reply = way.ask(ADD)
    assert reply.text == "One moment."
    assert [call["name"] for call in reply.calls] == [example.add_tool]


@pytest.mark.parametrize("one_message", [False, True])
def test_an_answer_has_several_texts(one_message: bool, model: StandIn, client: OpenAI) -> None:
    """They are messages of their own or parts of one message. Chat Completions has one message with one text."""
    model.fault("many_messages", texts=["One. ", "Two."], one_message=one_message, times=4)
    for streamed in (False, True):
        answer: Any = client.responses.create(model="any", input="hello", stream=streamed)
        whole = list(answer)[-1].response if streamed else answer
        parts = [[part.text for part in item.content] for item in whole.output]
        assert parts == ([["One. ", "Two."]] if one_message else [["One. "], ["Two."]])
        assert Way("chat", streamed, client).ask("hello").text == "One. Two."


def test_the_text_can_be_scripted(way: Way, model: StandIn) -> None:
    """The model answers with the test's text."""
    model.fault("say", text="Your password is hunter2.")
    assert way.ask(ADD).text == "Your password is hunter2."


def test_the_calls_can_be_scripted(way: Way, model: StandIn) -> None:
    """The model makes the test's calls once, and then follows the message."""
    model.fault("call", calls=[example.call_delete(1), example.call_list()])
    rounds, _ = run_turn(way, [], ADD, Tools())
    assert rounds == [[example.delete_tool, example.list_tool], [example.add_tool]]


def test_a_refusal_is_no_text(way: Way, model: StandIn) -> None:
    """The answer has a refusal in place of text."""
    model.fault("refusal")
    reply = way.ask(ADD)
    assert reply.refusal
    assert not reply.text


@pytest.mark.parametrize(("name", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_truncated_answer_has_a_reason(name: str, reason: str, way: Way, model: StandIn) -> None:
    """The status says that the answer is incomplete, and why."""
    model.fault(name)
    assert way.ask(ADD).stopped == reason


def test_a_text_can_be_empty(way: Way, model: StandIn) -> None:
    """The answer has a message with an empty text."""
    model.fault("empty_text")
    assert way.ask(ADD).text == ""


def test_an_unknown_tool_is_called(way: Way, model: StandIn) -> None:
    """No request offers that tool."""
    model.fault("unknown_tool")
    assert [call["name"] for call in way.ask(ADD).calls] == ["drop_tables"]


def test_endless_calls_continue_until_a_reset(way: Way, model: StandIn) -> None:
    """Each response has one more call, with an id of its own, whatever the outputs are."""
    model.fault("endless_tool_calls")
    history: Items = [{"role": "user", "content": ADD}]
    for _ in range(5):
        history += made(way.ask(history).calls, Tools())
    calls = [item["call_id"] for item in history if item.get("type") == "function_call"]
    assert len(set(calls)) == 5
    model.reset()
    assert [call["name"] for call in way.ask(history).calls] == [example.add_tool]


def test_malformed_arguments_are_sent_once(way: Way, model: StandIn) -> None:
    """The call's arguments are no JSON. The next call is correct."""
    model.fault("malformed_arguments")
    [call] = way.ask(ADD).calls
    assert call["name"] == example.add_tool
    with pytest.raises(json.JSONDecodeError):
        json.loads(call["arguments"])
    history: Items = [{"role": "user", "content": ADD}, {"type": "function_call"} | call]
    history.append({"type": "function_call_output", "call_id": call["call_id"], "output": "That is not JSON."})
    assert [json.loads(call["arguments"]) for call in way.ask(history).calls] == [ARGUMENTS]


def test_wrong_arguments_are_sent(way: Way, model: StandIn) -> None:
    """They break the schema: a text of 5,000 characters, or the test's values."""
    model.fault("wrong_arguments")
    assert len(json.loads(way.ask(ADD).calls[0]["arguments"])[example.text]) == 5000
    model.fault("wrong_arguments", tool=example.change_tool, arguments={example.id_argument: "two"})
    assert json.loads(way.ask(ADD).calls[0]["arguments"]) == {example.id_argument: "two"}


def test_extra_arguments_are_sent(way: Way, model: StandIn) -> None:
    """Here the model names another user."""
    model.fault("extra_arguments", user_id="mallory")
    assert json.loads(way.ask(ADD).calls[0]["arguments"]) == ARGUMENTS | {"user_id": "mallory"}


def test_two_calls_have_the_same_id(way: Way, model: StandIn) -> None:
    """The second one repeats the first one's id."""
    model.fault("duplicate_call_ids")
    one, two = way.ask(ADD).calls
    assert one["call_id"] == two["call_id"]


def test_bad_text_is_sent(way: Way, model: StandIn) -> None:
    """Arguments and reply have a NUL and a lone surrogate, which JSON allows and Postgres does not."""
    model.fault("bad_text", times=2)
    assert json.loads(way.ask(ADD).calls[0]["arguments"]) == ARGUMENTS | {example.text: "milk\x00\ud800"}
    text = way.ask("hello").text
    assert text is not None
    assert text.endswith("\x00\ud800")


def test_a_fault_waits_for_its_message(plain: Way, model: StandIn) -> None:
    """`match` ignores case."""
    model.fault("server_error", match="MILK")
    assert plain.ask("hello").text
    with pytest.raises(openai.InternalServerError):
        plain.ask(ADD)


def test_a_fault_waits_for_its_call(way: Way, model: StandIn) -> None:
    """With `after_calls` a turn fails after some of its calls."""
    model.fault("server_error", after_calls=1)
    history: Items = []
    with pytest.raises(openai.InternalServerError):
        run_turn(way, history, ADD, Tools())
    assert [item["name"] for item in history if item.get("type") == "function_call"] == [example.add_tool]


def test_an_unknown_fault_is_refused(model: StandIn) -> None:
    """Otherwise a test would pass because no fault happened."""
    with pytest.raises(ValueError, match="no fault 'rate_limits'"):
        model.fault("rate_limits")
    with pytest.raises(ValueError, match="no parameter retry"):
        model.fault("rate_limit", retry=1)


@pytest.mark.parametrize("message", ["stand-in: rate_limit once", f"{ADD}, then stand-in: rate limit once."])
def test_a_message_can_ask_for_a_fault(message: str, way: Way) -> None:
    """The fault happens once: the retry succeeds, and the next such message fails again."""
    for _ in range(2):
        with pytest.raises(openai.RateLimitError):
            way.ask(message)
        way.ask(message)


def test_a_fault_of_a_message_makes_the_turn_fail(way: Way) -> None:
    """taskchat makes three requests for one call of the model. The next request is a person's retry."""
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            way.ask(f"{ADD}, then stand-in: fail 502")
    assert way.ask(f"{ADD}, then stand-in: fail 502").calls


def test_a_fault_of_a_message_can_wait_for_the_calls(way: Way) -> None:
    """They take effect before the turn fails."""
    history: Items = []
    with pytest.raises(openai.RateLimitError):
        run_turn(way, history, f"{ADD} and stand-in: rate limit at the end", Tools())
    assert [item["name"] for item in history if item.get("type") == "function_call"] == [example.add_tool]


def test_a_fault_of_a_message_takes_a_number(plain: Way, model: StandIn) -> None:
    """Seconds or milliseconds, as the fault has them."""
    with pytest.raises(openai.RateLimitError) as raised:
        plain.ask("stand-in: rate limit 50 s")
    assert raised.value.response.headers["retry-after"] == "50"
    assert plain.ask("stand-in: slow 0 s").text == "Simulated slow."
    assert [record["fault"] for record in model.requests("slow")] == ["slow"]


def test_a_fault_of_a_message_happens_once_in_a_turn(way: Way) -> None:
    """The rest of the message is answered."""
    rounds, text = run_turn(way, [], f"{ADD} and stand-in: unknown tool", Tools())
    assert rounds == [["drop_tables"], [example.add_tool]]
    assert text.endswith("Simulated unknown_tool.")


def test_a_drip_of_a_message_lasts_for_the_turn(way: Way, model: StandIn) -> None:
    """A person sees how the text comes, which is in the last answer."""
    run_turn(way, [], f"{ADD} and stand-in: drip", Tools())
    assert [record["fault"] for record in model.requests()] == ["drip", "drip"]


def test_an_unknown_fault_of_a_message_is_reported(plain: Way) -> None:
    """The answer says so."""
    assert plain.ask("stand-in: explode").text == "I know no such fault: stand-in: explode."


# The server


def test_requests_are_recorded(way: Way, model: StandIn) -> None:
    """The test finds them by their message, until a reset."""
    way.ask(ADD)
    way.ask("hello")
    [record] = model.requests(match="Milk")
    assert (record["method"], record["message"], record["body"]["model"]) == ("POST", ADD, "any")
    model.reset()
    assert model.requests() == []


def test_the_command_prints_its_address() -> None:
    """The first line has it. The command ends quietly when interrupted."""
    command = [sys.executable, "-m", "dev.standin_model", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        with OpenAI(base_url=base_url, api_key="any") as client:
            assert client.models.list().data
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "")
