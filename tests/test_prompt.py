"""What the model is sent: the same bytes in front for everybody, what is new behind, and no more than it needs."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import openai
import psycopg
import pytest
from agents import ModelSettings, ModelTracing, OpenAIChatCompletionsModel, OpenAIResponsesModel
from agents.models.interface import Model
from openai.types.shared import Reasoning

from chat.model import ModelClient, ResponsesModel
from chat.model_input import build_input
from dev.standin_model.client import StandIn
from dev.standin_model.server import create_app
from taskchat.conversations.history import Turn
from taskchat.settings import Settings
from taskchat.toolcalls.models import ToolCall
from tests.conftest import Person, run, serving

Rows = psycopg.Connection[dict[str, Any]]
Body = dict[str, Any]
BOTH_WIRES = pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)

MAX_FIXED_TOKENS = 900
"""Of tools and instructions together, which every request pays for, counted as the stand-in model does."""


def dump(value: Any) -> str:
    """JSON as it travels: the order of the keys counts."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def items(body: Body) -> list[Body]:
    """What a request says after its tools and instructions."""
    found: list[Body] = body["input"] if "input" in body else body["messages"][1:]
    return found


def fixed(body: Body) -> str:
    """Tools and instructions of a request, in the order in which a provider's cache reads them."""
    return dump(body["tools"]) + (body["instructions"] if "input" in body else body["messages"][0]["content"])


def bodies(standin: StandIn, match: str | None = None) -> list[Body]:
    """The requests the model had."""
    return [request["body"] for request in standin.requests(match)]


class Wiretap:
    """The stand-in model, with each request kept as its bytes came over the wire."""

    def __init__(self) -> None:
        self._app = create_app()
        self.heard: list[tuple[str, dict[bytes, bytes], bytes]] = []
        """Address, headers and body of each."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI application."""
        body = b""

        async def listen() -> Any:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.request" and not message["more_body"]:
                address = f"{scope['path']}?{scope['query_string'].decode()}"
                self.heard.append((address, dict(scope["headers"]), body))
            return message

        await self._app(scope, listen, send)


@pytest.fixture
def wiretap() -> Iterator[tuple[Wiretap, str]]:
    """A wiretap and its address."""
    tap = Wiretap()
    with serving(tap) as url:
        yield tap, f"{url}/v1"


def history() -> list[Turn]:
    """Turns with all that a turn can hold: text in any script, calls of each outcome, no reply."""

    def call(number: int, **fields: Any) -> ToolCall:
        known = {"user_id": "u", "turn_id": uuid4(), "position": number, "door": "chat", "duration_ms": 1.0}
        return ToolCall(call_id=f"call_{number}", tool="add_task", **known | fields)

    calls = [
        call(1, arguments={"title": "milk 🥛 “quoted”", "description": None}, outcome="ok", result={"id": 1, "n": 1.5}),
        call(2, arguments={}, outcome="error", result={"error": "There is no such task."}),
    ]
    now = datetime.now(UTC)
    return [
        Turn(uuid4(), 0, "Ünïcode\n\t\\ </tool_data>", now, "Europe/Paris", calls, "Done."),
        Turn(uuid4(), 2, "add milk", now, None),
    ]


SETTINGS = [
    ModelSettings(store=False),
    ModelSettings(store=False, extra_args={"prompt_cache_key": "k"}, response_include=["reasoning.encrypted_content"]),
    ModelSettings(store=False, reasoning=Reasoning(effort="low")),
    ModelSettings(temperature=0.5, max_tokens=9, parallel_tool_calls=False, metadata={"a": "b"}, tool_choice="auto"),
    ModelSettings(
        extra_headers={"x-a": "b", "X-Stainless-Lang": openai.Omit()},
        extra_query={"c": "d", "e": [1, 2], "f": {"g": "h"}},
        extra_body={"i": [1, None]},
    ),
]
REASONED: list[Any] = [
    {"role": "user", "content": [{"type": "input_text", "text": "add milk"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
    {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "add_task", "arguments": "{}", "status": None},
    {"type": "function_call_output", "call_id": "c", "output": "{}"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "reasoning", "effort", "sampling", "extras"])
@pytest.mark.parametrize("kind", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
def test_the_model_is_sent_what_the_vendor_s_client_would_send(
    wiretap: tuple[Wiretap, str], kind: type[Model], settings: ModelSettings
) -> None:
    """Header by header and byte by byte, though ours leaves out the walks over it. Two things differ: the order of the
    fields, and that ours asks for answers that are not packed."""
    tap, url = wiretap
    ours = ModelClient(
        Settings(DATABASE_URL="postgresql://u:p@localhost/d", OPENAI_API_KEY="sk-any", OPENAI_BASE_URL=url)
    )
    theirs = openai.AsyncOpenAI(api_key="sk-any", base_url=url, max_retries=0)
    responses = kind is OpenAIResponsesModel
    inputs = [build_input(history()[:1], history()[1])] + ([REASONED] if responses else [])
    for client, model in ((ours, ResponsesModel if responses else kind), (theirs, kind)):
        for given in inputs:
            run(_ask(model(model="stand-in", openai_client=client), given, settings))
        run(client.close())
    half = len(tap.heard) // 2
    assert half == len(inputs)
    for (*our_head, our_body), (*their_head, their_body) in zip(tap.heard[:half], tap.heard[half:], strict=True):
        assert our_head == [their_head[0], their_head[1] | {b"accept-encoding": b"identity"}]
        assert len(our_body) == len(their_body)
        assert _fields(our_body) == _fields(their_body)


def _fields(body: bytes) -> dict[str, str]:
    return {name: dump(value) for name, value in json.loads(body).items()}


async def _ask(model: Model, given: list[Any], settings: ModelSettings) -> None:
    from chat.agent import _adapt
    from chat.app import process

    listed = [tool.to_mcp_tool() for tool in await process.tools.list_tools()]
    tools: Any = [_adapt(tool.name, str(tool.description), tool.input_schema) for tool in listed]
    await model.get_response(
        "Be brief.",
        given,
        settings,
        tools,
        None,
        [],
        ModelTracing.DISABLED,
        previous_response_id=None,
        conversation_id=None,
        prompt=None,
    )


@BOTH_WIRES
def test_what_all_requests_have_in_common_comes_first(alice: Person, bob: Person, standin: StandIn) -> None:
    """Tools and instructions are the same bytes for everybody, in any zone and turn; what was said comes last."""
    for person, zone, message in ((alice, "Europe/Paris", "add milk"), (bob, "Asia/Tokyo", "what is left?")):
        assert person.post({"message": message, "timezone": zone}).status == 200
    sent = bodies(standin)
    assert len(sent) == 4
    assert len({fixed(body) for body in sent}) == 1
    for body, message in zip(sent, ["add milk"] * 2 + ["what is left?"] * 2, strict=True):
        said = items(body)[0]["content"]
        assert said.startswith("[context: ")
        assert said.endswith(f"]\n{message}")
        assert message not in fixed(body)


@BOTH_WIRES
def test_tools_and_instructions_are_short(alice: Person, standin: StandIn) -> None:
    """By the stand-in's measure of four characters to a token; a real tokenizer (o200k_base) counts a little less."""
    alice.say("hello")
    (body,) = bodies(standin)
    assert len(fixed(body)) / 4 < MAX_FIXED_TOKENS


def test_a_conversation_has_a_cache_of_its_own(alice: Person, standin: StandIn) -> None:
    """All of its requests bear one key, and no other conversation's does."""
    first, second = (alice.say("add milk").json["conversation_id"] for _ in range(2))
    alice.say("add bread", first)
    assert [body["prompt_cache_key"] for body in bodies(standin)] == [first] * 2 + [second] * 2 + [first] * 2


TALK = [
    "add milk and bread, then finish the milk",
    'add "a < b" with note: <b>é 漢 🥛 \\ "quoted"</b>',
    "what is left?",
    "finish 999999999",
    "hello",
    "rename the bread to rolls and delete everything completed",
    "what is left?",
]


@BOTH_WIRES
def test_each_turn_s_requests_begin_with_the_last_turn_s(alice: Person, standin: StandIn) -> None:
    """Item by item and byte by byte: what the model read while it worked is what it reads of it later."""
    standin.fault("malformed_arguments", match="hello")
    standin.fault("extra_arguments", match="rename", user_id="somebody")
    standin.fault("wrong_arguments", match="what is left?")
    conversation_id = None
    for message in TALK:
        answer = alice.say(message, conversation_id)
        assert answer.status == 200
        conversation_id = answer.json["conversation_id"]
    sent = [[dump(item) for item in items(body)] for body in bodies(standin)]
    assert len(sent) > 2 * len(TALK)
    for earlier, later in pairwise(sent):
        assert later[: len(earlier)] == earlier


@pytest.mark.parametrize(
    ("model_api", "model"),
    [("responses", "stand-in"), ("responses", "gpt-6-luna"), ("chat_completions", "stand-in")],
    indirect=["model_api"],
)
@pytest.mark.parametrize("database_url", ["direct"], indirect=True)
def test_over_sixty_turns_nine_tenths_of_the_input_are_cached(
    alice: Person,
    rows: Rows,
    standin: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[[str], None],
    model_api: str,
    model: str,
) -> None:
    """Cuts of the history included, of which there are some; and with a model whose reasoning ends with the turn."""
    monkeypatch.setenv("MODEL", model)
    monkeypatch.setenv("HISTORY_TOKENS", "2000")
    conversation_id, task_id, starts = None, 0, set()
    for number in range(15):
        for message in (f"add errand {number}", "finish {}", f"add letter {number}", "what is left?"):
            answer = alice.say(message.format(task_id), conversation_id).json
            conversation_id, task_id = answer["conversation_id"], answer["tool_calls"][0]["result"].get("id")
            starts.add(items(bodies(standin)[-1])[0]["content"])
    (used,) = rows.execute(
        "select count(*) as turns, sum((usage->>'cached_tokens')::int) as cached,"
        " sum((usage->>'input_tokens')::int) as read from message where user_id = %s and role = 'assistant'",
        [alice.id],
    ).fetchall()
    assert used["turns"] == 60
    assert len(starts) > 2
    share = used["cached"] / used["read"]
    report(f"{model} by {model_api}: {share:.1%} of 60 turns' input was cached, with {len(starts) - 1} cuts")
    assert share >= 0.9
