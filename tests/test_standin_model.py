"""The stand-in model keeps its promises over real HTTP, to the OpenAI client and the Agents SDK."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import openai
import pytest
from agents import Agent, ModelSettings, RunConfig, Runner, function_tool
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

Json = dict[str, Any]
Items = list[Any]

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "stand-in-model.md").read_text()
PARAMETERS = {
    "add_task": ["title", "description"],
    "list_tasks": ["status", "cursor"],
    "complete_task": ["task_id"],
    "delete_task": ["task_id"],
    "update_task": ["task_id", "title", "description"],
}


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table under a heading of docs/stand-in-model.md."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def function(name: str, *names: str, required: tuple[str, ...] = ()) -> Json:
    """Return a function's name and schema, as both APIs take it."""
    properties = {each: {"type": ["string", "integer", "null"]} for each in names}
    return {"name": name, "parameters": {"type": "object", "properties": properties, "required": list(required)}}


FUNCTIONS = [function(name, *names) for name, names in PARAMETERS.items()]


class Toolbox:
    """Keep tasks in memory, and return what the program's tools return."""

    def __init__(self, *titles: str) -> None:
        self.tasks: list[Json] = []
        self.page_size = 100
        for title in titles:
            self.add_task(title.removesuffix(" (done)"))["completed"] = title.endswith(" (done)")

    def run(self, name: str, arguments: str) -> str:
        try:
            return json.dumps(getattr(self, name)(**json.loads(arguments)))
        except (AttributeError, LookupError, ValueError) as error:
            return str(error.args[0])

    def add_task(self, title: str, description: str | None = None) -> Json:
        self.tasks.append({"id": len(self.tasks) + 1, "title": title, "description": description, "completed": False})
        return self.tasks[-1]

    def list_tasks(self, status: str | None = None, cursor: str | None = None) -> Json:
        found = [task for task in self.tasks if status in (None, "all", _status(task))]
        start, end = int(cursor or 0), int(cursor or 0) + self.page_size
        return {"tasks": found[start:end], "next_cursor": str(end) if end < len(found) else None}

    def complete_task(self, task_id: int) -> Json:
        return self.update_task(task_id, completed=True)

    def delete_task(self, task_id: int) -> Json:
        task = self.update_task(task_id)
        self.tasks.remove(task)
        return task

    def update_task(self, task_id: int, **changes: Any) -> Json:
        for task in self.tasks:
            if task["id"] == task_id:
                task.update(changes)
                return task
        raise LookupError(f"There is no task {task_id}.")


def _status(task: Json) -> str:
    return "completed" if task["completed"] else "pending"


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

    def ask(self, message: str | Items, **options: Any) -> Reply:
        history = [{"role": "user", "content": message}] if isinstance(message, str) else message
        tools = options.pop("tools", FUNCTIONS)
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


def made(calls: list[Json], toolbox: Toolbox) -> Items:
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


def run_turn(way: Way, history: Items, message: str, toolbox: Toolbox, **options: Any) -> tuple[list[list[str]], str]:
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


# Sentences


def test_independent_calls_come_in_one_response(way: Way) -> None:
    """A dependent call comes later. Here a task is looked up after it was added, and then completed."""
    rounds, text = run_turn(way, [], "Add buy milk and call mum, then finish the milk", Toolbox())
    assert rounds == [["add_task", "add_task"], ["list_tasks"], ["complete_task"]]
    assert text == "Added buy milk (1) and call mum (2). Finished buy milk (1)."


def test_parallel_calls_can_be_forbidden(way: Way) -> None:
    """`parallel_tool_calls: false` gives one call in each response."""
    rounds, _ = run_turn(way, [], "add milk and bread", Toolbox(), parallel_tool_calls=False)
    assert rounds == [["add_task"], ["add_task"]]


def test_an_interrupted_turn_makes_the_missing_calls(way: Way) -> None:
    """Calls in the input count as made. The answer reports all of them."""
    toolbox = Toolbox()
    history: Items = [{"role": "user", "content": "add milk and bread"}]
    history += made([{"call_id": "call_old", "name": "add_task", "arguments": '{"title": "milk"}'}], toolbox)
    reply = way.ask(history)
    assert [json.loads(call["arguments"]) for call in reply.calls] == [{"title": "bread"}]
    assert way.ask(history + made(reply.calls, toolbox)).text == "Added milk (1) and bread (2)."


def test_earlier_turns_are_not_repeated(way: Way) -> None:
    """Only the last message counts, with the calls after it."""
    toolbox, history = Toolbox(), []
    run_turn(way, history, "add milk", toolbox)
    assert run_turn(way, history, "add milk", toolbox) == ([["add_task"]], "Added milk (2).")


def test_the_model_reports_its_history(way: Way) -> None:
    """A test can check that the history arrives."""
    toolbox, history = Toolbox(), []
    run_turn(way, history, "add milk", toolbox)
    assert run_turn(way, history, "Which tools did you use?", toolbox)[1] == "Earlier I used add_task."
    assert run_turn(way, history, "What did I just say?", toolbox)[1] == "You said: Which tools did you use?"


def test_an_unknown_sentence_gets_a_hint(way: Way) -> None:
    """The answer repeats the sentence, and gives examples of known ones."""
    reply = way.ask("Remember that I like tea.")
    assert reply.text is not None
    assert reply.text.startswith("I did not understand “Remember that I like tea”. I am the stand-in")


def test_context_lines_are_not_part_of_the_message(way: Way) -> None:
    """The program may add a context line before or after the message, in the same part or in another one."""
    kind = "input_text" if way.api == "responses" else "text"
    parts = [{"type": kind, "text": "[context: Friday]"}, {"type": kind, "text": "add milk\n[context: end]"}]
    developer = {"role": "developer", "content": "It is Friday."}
    reply = way.ask([{"role": "user", "content": parts}, developer])
    assert [call["arguments"] for call in reply.calls] == ['{"title":"milk"}']


def test_an_output_may_be_a_list_of_parts(plain: Way) -> None:
    """Tools with structured content return such lists."""
    call = {"type": "function_call", "call_id": "c", "name": "add_task", "arguments": '{"title":"milk"}'}
    parts = [{"type": "input_text", "text": '{"id": 7, "title": "milk", "completed": false}'}]
    output = {"type": "function_call_output", "call_id": "c", "output": parts}
    assert plain.ask([{"role": "user", "content": "add milk"}, call, output]).text == "Added milk (7)."


def test_a_missing_tool_is_not_called(way: Way) -> None:
    """The answer says that the request has no such tool."""
    assert way.ask("add milk", tools=FUNCTIONS[1:]).text == "I could not add milk: I was given no tool add_task."


def test_arguments_fit_the_sent_schema(plain: Way) -> None:
    """A strict schema requires each parameter. A parameter that the schema lacks is not sent."""
    strict = function("list_tasks", "status", "cursor", required=("status", "cursor"))
    bare = function("list_tasks")
    rounds, _ = run_turn(plain, [], "what is left?", Toolbox(), tools=[bare])
    assert rounds == [["list_tasks"]]
    assert plain.ask("what is left?", tools=[strict]).calls[0]["arguments"] == '{"status":"pending","cursor":null}'
    assert plain.ask("what is left?", tools=[bare]).calls[0]["arguments"] == "{}"


@pytest.mark.parametrize("unit", ["and ", "please ", "add ", ". ", ".", ",", "\n", '"', "a, ", "what "])
def test_every_message_is_answered_at_once(unit: str, plain: Way) -> None:
    """The patterns take linear time, for 32 KB of any text."""
    hasty = Way("responses", False, plain.client.with_options(timeout=2))
    assert hasty.ask(unit * (32_768 // len(unit)))


# The two APIs


def test_responses_have_the_shape_of_the_real_api(model: StandIn, client: OpenAI) -> None:
    """Each response and each event has the fields that the SDK's types require, with allowed values."""
    event = TypeAdapter[Any](ResponseStreamEvent)
    for message in ("add milk and bread", "hello", "simulate refusal", "simulate length", "simulate content filter"):
        body = {"model": "any", "input": message, "tools": [{"type": "function", "strict": False} | FUNCTIONS[0]]}
        body["include"] = ["reasoning.encrypted_content"]
        Response.model_validate_json(_raw(client, "/responses", body))
        for kind, data in _events(_raw(client, "/responses", body | {"input": f"{message}!", "stream": True})):
            assert event.validate_json(data).type == kind


def test_completions_have_the_shape_of_the_real_api(model: StandIn, client: OpenAI) -> None:
    """Each completion and each chunk does too. The stream ends with [DONE]."""
    for message in ("add milk and bread", "hello", "simulate refusal", "simulate length", "simulate content filter"):
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
    one, two = (client.responses.create(model="any", input="add milk", tools=[tool]) for _ in range(2))
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


CALL = {"type": "function_call", "call_id": "c", "name": "add_task", "arguments": "{}"}
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
    reasoning, call = (item.model_dump(exclude_none=True) for item in create(input="add milk", **options).output)
    user, output = {"role": "user", "content": "add milk"}, OUTPUT | {"call_id": call["call_id"]}
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
    [call] = create(model="any", input="add milk", tools=tools).output
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


@function_tool
def add_task(title: str) -> str:
    """Add a task."""
    return json.dumps({"id": 1, "title": title, "completed": False})


AGENT_MODELS = [OpenAIResponsesModel, OpenAIChatCompletionsModel]
REASONING = ModelSettings(
    store=False, reasoning=Reasoning(effort="low"), response_include=["reasoning.encrypted_content"]
)


async def _run_agent(base_url: str, kind: Any, settings: ModelSettings, *, streamed: bool) -> Any:
    async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        agent = Agent(
            name="agent", model=kind(model="any", openai_client=client), tools=[add_task], model_settings=settings
        )
        quiet = RunConfig(tracing_disabled=True)
        if not streamed:
            return (await Runner.run(agent, "add milk and bread", run_config=quiet)).final_output
        result = Runner.run_streamed(agent, "add milk and bread", run_config=quiet)
        async for _ in result.stream_events():
            pass
        return result.final_output


def run_agent(base_url: str, kind: Any, settings: ModelSettings, *, streamed: bool) -> Any:
    """Return the agent's final answer."""
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
    answer = sdk_process.submit(run_agent, model.base_url, kind, settings, streamed=streamed).result()
    assert answer == "Added milk (1) and bread (1)."


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
        way.ask("add milk")
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


def test_the_text_can_be_scripted(way: Way, model: StandIn) -> None:
    """The model answers with the test's text."""
    model.fault("say", text="Your password is hunter2.")
    assert way.ask("add milk").text == "Your password is hunter2."


def test_the_calls_can_be_scripted(way: Way, model: StandIn) -> None:
    """The model makes the test's calls once, and then follows the message."""
    model.fault("call", calls=[{"name": "delete_task", "arguments": {"task_id": 1}}, {"name": "list_tasks"}])
    rounds, text = run_turn(way, [], "finish 2", Toolbox("milk", "bread"))
    assert rounds == [["delete_task", "list_tasks"], ["complete_task"]]
    assert text == "Finished bread (2)."


def test_a_refusal_is_no_text(way: Way, model: StandIn) -> None:
    """The answer has a refusal in place of text."""
    model.fault("refusal")
    reply = way.ask("add milk")
    assert reply.refusal
    assert not reply.text


@pytest.mark.parametrize(("name", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_truncated_answer_has_a_reason(name: str, reason: str, way: Way, model: StandIn) -> None:
    """The status says that the answer is incomplete, and why."""
    model.fault(name)
    assert way.ask("add milk").stopped == reason


def test_a_text_can_be_empty(way: Way, model: StandIn) -> None:
    """The answer has a message with an empty text."""
    model.fault("empty_text")
    assert way.ask("add milk").text == ""


def test_an_unknown_tool_is_called(way: Way, model: StandIn) -> None:
    """No request offers that tool."""
    model.fault("unknown_tool")
    assert [call["name"] for call in way.ask("add milk").calls] == ["drop_tables"]


def test_endless_calls_continue_until_a_reset(way: Way, model: StandIn) -> None:
    """Each response has one more call, with an id of its own, whatever the outputs are."""
    model.fault("endless_tool_calls")
    history: Items = [{"role": "user", "content": "add milk"}]
    for _ in range(5):
        history += made(way.ask(history).calls, Toolbox())
    calls = [item["call_id"] for item in history if item.get("type") == "function_call"]
    assert len(set(calls)) == 5
    model.reset()
    assert [call["name"] for call in way.ask(history).calls] == ["add_task"]


def test_malformed_arguments_are_sent_once(way: Way, model: StandIn) -> None:
    """The call's arguments are no JSON. The next call is correct."""
    model.fault("malformed_arguments")
    [call] = way.ask("add milk").calls
    assert call["name"] == "add_task"
    with pytest.raises(json.JSONDecodeError):
        json.loads(call["arguments"])
    history: Items = [{"role": "user", "content": "add milk"}, {"type": "function_call"} | call]
    history.append({"type": "function_call_output", "call_id": call["call_id"], "output": "That is not JSON."})
    assert [call["arguments"] for call in way.ask(history).calls] == ['{"title":"milk"}']


def test_wrong_arguments_are_sent(way: Way, model: StandIn) -> None:
    """They break the schema: a title of 5,000 characters, or the test's values."""
    model.fault("wrong_arguments")
    assert len(json.loads(way.ask("add milk").calls[0]["arguments"])["title"]) == 5000
    model.fault("wrong_arguments", tool="complete_task", arguments={"task_id": "two"})
    assert way.ask("add milk").calls[0]["arguments"] == '{"task_id":"two"}'


def test_extra_arguments_are_sent(way: Way, model: StandIn) -> None:
    """Here the model names another user."""
    model.fault("extra_arguments", user_id="mallory")
    assert way.ask("add milk").calls[0]["arguments"] == '{"title":"milk","user_id":"mallory"}'


def test_two_calls_have_the_same_id(way: Way, model: StandIn) -> None:
    """The second one repeats the first one's id."""
    model.fault("duplicate_call_ids")
    one, two = way.ask("add milk").calls
    assert one["call_id"] == two["call_id"]


def test_bad_text_is_sent(way: Way, model: StandIn) -> None:
    """Arguments and reply have a NUL and a lone surrogate, which JSON allows and Postgres does not."""
    model.fault("bad_text", times=2)
    assert json.loads(way.ask("add milk").calls[0]["arguments"]) == {"title": "milk\x00\ud800"}
    text = way.ask("hello").text
    assert text is not None
    assert text.endswith("\x00\ud800")


def test_a_fault_waits_for_its_message(plain: Way, model: StandIn) -> None:
    """`match` ignores case."""
    model.fault("server_error", match="MILK")
    assert plain.ask("hello").text
    with pytest.raises(openai.InternalServerError):
        plain.ask("add milk")


def test_a_fault_waits_for_its_call(way: Way, model: StandIn) -> None:
    """With `after_calls` a turn fails after some of its calls."""
    model.fault("server_error", after_calls=1)
    toolbox = Toolbox()
    with pytest.raises(openai.InternalServerError):
        run_turn(way, [], "add milk", toolbox)
    assert [task["title"] for task in toolbox.tasks] == ["milk"]


def test_an_unknown_fault_is_refused(model: StandIn) -> None:
    """Otherwise a test would pass because no fault happened."""
    with pytest.raises(ValueError, match="no fault 'rate_limits'"):
        model.fault("rate_limits")
    with pytest.raises(ValueError, match="no parameter retry"):
        model.fault("rate_limit", retry=1)


@pytest.mark.parametrize("message", ["simulate rate_limit", "Add milk, then simulate rate limit."])
def test_a_message_can_ask_for_a_fault(message: str, way: Way) -> None:
    """The fault happens once: the retry succeeds, and the next such message fails again."""
    for _ in range(2):
        with pytest.raises(openai.RateLimitError):
            way.ask(message)
        way.ask(message)


def test_a_simulated_fault_happens_once_in_a_turn(way: Way) -> None:
    """The rest of the message is answered."""
    rounds, text = run_turn(way, [], "Add milk and simulate unknown tool", Toolbox())
    assert rounds == [["drop_tables"], ["add_task"]]
    assert text == "Added milk (1). Simulated unknown_tool."


# The server


def test_requests_are_recorded(way: Way, model: StandIn) -> None:
    """The test finds them by their message, until a reset."""
    way.ask("add milk")
    way.ask("hello")
    [record] = model.requests(match="Milk")
    assert (record["method"], record["message"], record["body"]["model"]) == ("POST", "add milk", "any")
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
