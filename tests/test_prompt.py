"""Test the requests to the model: the same bytes first for all users, new text last, and no more than needed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import openai
import psycopg
import pytest
from agents import ModelSettings, ModelTracing, OpenAIChatCompletionsModel, OpenAIResponsesModel, UserError
from agents.models.interface import Model
from openai.types.shared import Reasoning

from chat.model import ProviderModel
from chat.model_input import build_input
from dev.standin_model.client import StandIn
from dev.standin_model.server import create_app
from taskchat.conversations.history import Turn
from taskchat.settings import Settings
from taskchat.toolcalls.models import ToolCall
from tests.conftest import Person, run, serving
from tests.domain import example

Rows = psycopg.Connection[dict[str, Any]]
Body = dict[str, Any]
BOTH_APIS = pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)

ADD, SHOW, RENAME = example.add("milk"), example.show(), example.rename("bread", "rolls")

MAX_FIXED_TOKENS = 1_050
"""Tokens of tools and instructions together, which every request pays for, counted as the stand-in model does."""


def dump(value: Any) -> str:
    """Return JSON as it is sent: the order of the keys counts."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def items(body: Body) -> list[Body]:
    """Return the items of a request behind its tools and instructions."""
    found: list[Body] = body["input"] if "input" in body else body["messages"][1:]
    return found


def fixed(body: Body) -> str:
    """Return tools and instructions of a request, in the order in which a provider's cache reads them."""
    return dump(body["tools"]) + (body["instructions"] if "input" in body else body["messages"][0]["content"])


def bodies(standin: StandIn, match: str | None = None) -> list[Body]:
    """Return the bodies of the requests to the model."""
    return [request["body"] for request in standin.requests(match)]


class Recorder:
    """Records the bytes of each request to the stand-in model."""

    def __init__(self) -> None:
        self._app = create_app()
        self.requests: list[tuple[str, dict[bytes, bytes], bytes]] = []
        """Address, headers and body of each request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as an ASGI application."""
        body = b""

        async def record() -> Any:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.request" and not message["more_body"]:
                address = f"{scope['path']}?{scope['query_string'].decode()}"
                self.requests.append((address, dict(scope["headers"]), body))
            return message

        await self._app(scope, record, send)


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    """Serve a recorder, and return it with its address."""
    recorder = Recorder()
    with serving(recorder) as url:
        yield recorder, f"{url}/v1"


def history() -> list[Turn]:
    """Return turns with text in any script, calls of each outcome, and no reply."""

    def call(number: int, **fields: Any) -> ToolCall:
        known = {"user_id": "u", "turn_id": uuid4(), "position": number, "door": "chat", "duration_ms": 1.0}
        return ToolCall(call_id=f"call_{number}", tool=example.add_tool, **known | fields)

    calls = [
        call(
            1,
            arguments={example.text: "milk 🥛 “quoted”", "description": None},
            outcome="ok",
            result={"id": 1, "n": 1.5},
        ),
        call(2, arguments={}, outcome="error", result={"error": example.absent}),
    ]
    now = datetime.now(UTC)
    return [
        Turn(uuid4(), 0, "Ünïcode\n\t\\ </tool_data>", now, "Europe/Paris", calls, "Done."),
        Turn(uuid4(), 2, "hello", now, None),
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
VENDOR_MODELS: dict[str, Any] = {"responses": OpenAIResponsesModel, "chat_completions": OpenAIChatCompletionsModel}
REASONED: list[Any] = [
    {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
    {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": None},
    {"type": "function_call_output", "call_id": "c", "output": "{}"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "reasoning", "effort", "sampling", "extras"])
@pytest.mark.parametrize("api", VENDOR_MODELS)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_requests_are_those_of_the_vendor_s_client(
    recorder: tuple[Recorder, str], api: str, settings: ModelSettings, is_streamed: bool
) -> None:
    """Every header and byte is the same, except for the order of the fields and two headers.

    Ours asks for unpacked answers. The vendor's class asks its own client for the stream by a header.
    """
    recorded, url = recorder
    known: Any = {"DATABASE_URL": "postgresql://u:p@localhost/d", "OPENAI_API_KEY": "sk-any", "OPENAI_BASE_URL": url}
    ours = ProviderModel(Settings(**known, MODEL="stand-in", MODEL_API=api))
    client = openai.AsyncOpenAI(api_key="sk-any", base_url=url, max_retries=0)
    theirs = VENDOR_MODELS[api](model="stand-in", openai_client=client)
    if api == "chat_completions":
        settings = replace(settings, response_include=None)
    inputs = [build_input(history()[:1], history()[1])] + ([REASONED] if api == "responses" else [])
    for model in (ours, theirs):
        for given in inputs:
            run(_ask(model, given, settings, is_streamed=is_streamed))
    run(ours.close())
    run(client.close())
    half = len(recorded.requests) // 2
    assert half == len(inputs)
    for (*our_head, our_body), (*their_head, their_body) in zip(
        recorded.requests[:half], recorded.requests[half:], strict=True
    ):
        their_headers = {name: value for name, value in their_head[1].items() if name != b"x-stainless-raw-response"}
        assert our_head == [their_head[0], their_headers | {b"accept-encoding": b"identity"}]
        assert len(our_body) == len(their_body)
        assert _fields(our_body) == _fields(their_body)


def test_an_unknown_setting_is_refused(recorder: tuple[Recorder, str]) -> None:
    """The model sends no request when the agent sets a field that the model does not know."""
    recorded, url = recorder
    known: Any = {"DATABASE_URL": "postgresql://u:p@localhost/d", "OPENAI_API_KEY": "sk-any", "OPENAI_BASE_URL": url}
    with pytest.raises(UserError, match="verbosity"):
        run(_ask(ProviderModel(Settings(**known)), [], ModelSettings(verbosity="low"), is_streamed=False))
    assert recorded.requests == []


def _fields(body: bytes) -> dict[str, str]:
    return {name: dump(value) for name, value in json.loads(body).items()}


async def _ask(model: Model, given: list[Any], settings: ModelSettings, *, is_streamed: bool) -> None:
    from chat.agent import _adapt
    from chat.app import process

    listed = [tool.to_mcp_tool() for tool in await process.tools.list_tools()]
    tools: Any = [_adapt(tool) for tool in listed]
    known: Any = ("Be brief.", given, settings, tools, None, [], ModelTracing.DISABLED)
    state: Any = dict.fromkeys(("previous_response_id", "conversation_id", "prompt"))
    if not is_streamed:
        await model.get_response(*known, **state)
        return
    async for _ in model.stream_response(*known, **state):
        pass


@BOTH_APIS
def test_the_common_part_of_all_requests_comes_first(alice: Person, bob: Person, standin: StandIn) -> None:
    """Tools and instructions are the same bytes for all users, zones and turns; the message comes last."""
    for person, zone, message in ((alice, "Europe/Paris", ADD), (bob, "Asia/Tokyo", SHOW)):
        assert person.post({"message": message, "timezone": zone}).status == 200
    sent = bodies(standin)
    assert len(sent) == 4
    assert len({fixed(body) for body in sent}) == 1
    for body, message in zip(sent, [ADD] * 2 + [SHOW] * 2, strict=True):
        content = items(body)[0]["content"]
        assert content.startswith("[context: ")
        assert content.endswith(f"]\n{message}")
        assert message not in fixed(body)


@BOTH_APIS
def test_tools_and_instructions_are_short(alice: Person, standin: StandIn) -> None:
    """The stand-in counts four characters as a token; a real tokenizer (o200k_base) counts a little less."""
    alice.say("hello")
    (body,) = bodies(standin)
    assert len(fixed(body)) / 4 < MAX_FIXED_TOKENS


def test_a_conversation_has_a_cache_of_its_own(alice: Person, standin: StandIn) -> None:
    """All requests of a conversation have one cache key. Another conversation has another key."""
    first, second = (alice.say(ADD).json["conversation_id"] for _ in range(2))
    alice.say(example.add("bread"), first)
    assert [body["prompt_cache_key"] for body in bodies(standin)] == [first] * 2 + [second] * 2 + [first] * 2


MESSAGES = [
    example.add("milk", "bread").then(example.change("milk")),
    'good morning, <b>é 漢 🥛 \\ "quoted"</b>',
    SHOW,
    example.fail(),
    "hello",
    RENAME,
    example.delete("milk"),
    SHOW,
]


@BOTH_APIS
def test_each_turn_s_requests_begin_with_those_before(alice: Person, standin: StandIn) -> None:
    """Later turns read each item as this turn did, byte by byte."""
    standin.fault("malformed_arguments", match="hello")
    standin.fault("extra_arguments", match=RENAME, user_id="mallory")
    standin.fault("wrong_arguments", match=SHOW)
    conversation_id = None
    for message in MESSAGES:
        answer = alice.say(message, conversation_id)
        assert answer.status == 200
        conversation_id = answer.json["conversation_id"]
    sent = [[dump(item) for item in items(body)] for body in bodies(standin)]
    assert len(sent) > 2 * len(MESSAGES)
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
    """The turns include several cuts of the history, and a model whose reasoning ends with the turn."""
    monkeypatch.setenv("MODEL", model)
    monkeypatch.setenv("HISTORY_TOKENS", "2000")
    conversation_id, thing, starts = None, None, set()
    for number in range(15):
        for message in (example.add(f"errand{number}"), None, example.add(f"letter{number}"), SHOW):
            answer = alice.say(message or example.change(str(thing)), conversation_id).json
            conversation_id, thing = answer["conversation_id"], answer["tool_calls"][0]["result"].get("id")
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
