"""Test that the model's provider is not trusted: no HTTP answer of it leaks, breaks or is followed anywhere."""

import json
import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from taskchat.settings import Settings
from tests.conftest import Logs, Person, reset_processes, serving
from tests.domain import example
from tests.privacy import LogSearch

Rows = psycopg.Connection[dict[str, Any]]
Json = dict[str, Any]
PRIVATE_TEXT = "my divorce lawyer is Jane Roe"
BOTH_APIS = pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)


@pytest.fixture(scope="session")
def database_url(server: Postgres, pooler: PgBouncer) -> str:
    """Return the pooler's URL, as in production: only the provider is unusual here."""
    return pooler.url(server.app_url)


class Provider:
    """An HTTP server that gives its answers in their order, and the last one forever."""

    def __init__(self) -> None:
        self.answers: list[Response] = []
        self.requests: list[Json] = []
        """The bodies of the requests."""
        self.cookies: list[str | None] = []
        """The cookie header of each request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as an ASGI application."""
        if scope["type"] == "http":
            request = Request(scope, receive)
            self.requests.append(await request.json())
            self.cookies.append(request.headers.get("cookie"))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            await answer(scope, receive, send)


@pytest.fixture
def provider(environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """Serve a provider at the address of the environment's model."""
    provider = Provider()
    with serving(provider) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        reset_processes()
        yield provider


def function_call(call_id: Any, name: str = example.list_tool, arguments: str = "{}") -> Json:
    """Return one tool call, as the item of a response."""
    return {"type": "function_call", "id": "fc", "call_id": call_id, "name": name, "arguments": arguments}


def response(*items: Json, api: str = "responses", usage: Any = None) -> Response:
    """Return an answer of either API: the calls, or a text if there are none."""
    if api == "chat_completions":
        return _completion(items, usage)
    text = {"type": "output_text", "text": "Done.", "annotations": []}
    message = {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [text]}
    fixed = {"id": "r", "object": "response", "created_at": 0, "model": "m", "status": "completed"}
    choice = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return _json({**fixed, **choice, "output": list(items) or [message], "usage": usage})


def _completion(items: tuple[Json, ...], usage: Any) -> Response:
    calls = [
        {"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
        for item in items
    ]
    message: Json = {"role": "assistant", "content": None, "tool_calls": calls} if calls else {"content": "Done."}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"} | message}
    fixed = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
    return _json({**fixed, "choices": [choice], "usage": usage})


def _json(content: Json) -> Response:
    return Response(json.dumps(content), media_type="application/json")  # in ASCII, for lone surrogates


def arguments_sent(body: Json) -> list[Json]:
    """Return the arguments of each call in a request."""
    if "input" in body:
        return [json.loads(item["arguments"]) for item in body["input"] if item.get("type") == "function_call"]
    calls = [call for message in body["messages"] for call in message.get("tool_calls") or ()]
    return [json.loads(call["function"]["arguments"]) for call in calls]


def named_calls(body: Json) -> list[tuple[str, str]]:
    """Return id and name of each call in a request of either API."""
    if "input" in body:
        return [(item["call_id"], item["name"]) for item in body["input"] if item.get("type") == "function_call"]
    calls = [call for message in body["messages"] for call in message.get("tool_calls") or ()]
    return [(call["id"], call["function"]["name"]) for call in calls]


ODD_IDS: dict[str, Any] = {
    "NUL": "a\0b",
    "escapes": "\x1b[2J\u202e<tool_data>",
    "a lone surrogate": "\ud800",
    "half a megabyte": "x" * 500_000,
    "65 characters": "x" * 65,
    "a sentence": PRIVATE_TEXT,
    "nothing": "",
}


@BOTH_APIS
class TestIds:
    """Each call gets an id of ours, whatever id the model wrote."""

    @pytest.mark.parametrize("what", ODD_IDS)
    def test_an_odd_id_is_replaced(self, what: str, alice: Person, provider: Provider, model_api: str) -> None:
        """This turn and the next are answered, and providers get ids that they accept."""
        given = function_call(ODD_IDS[what])
        provider.answers = [response(given, given, api=model_api), response(api=model_api)]
        answer = alice.say("hello")
        assert answer.status == 200
        assert alice.say("again", answer.json["conversation_id"]).status == 200
        ids = [made["call_id"] for made in answer.json["tool_calls"]]
        assert len(set(ids)) == 2
        assert [call_id for call_id, _ in named_calls(provider.requests[-1])] == ids
        assert all(len(call_id) <= 64 and call_id.replace("_", "").isalnum() for call_id in ids)

    def test_no_id_is_logged(
        self, alice: Person, provider: Provider, logs: Logs, log_search: LogSearch, model_api: str
    ) -> None:
        """Nor is it stored or sent, because a model may put a user's text anywhere."""
        log_search.add_texts([PRIVATE_TEXT])
        provider.answers = [response(function_call(PRIVATE_TEXT), api=model_api), response(api=model_api)]
        answer = alice.say(f"hello, {PRIVATE_TEXT}")
        assert answer.status == 200
        assert "divorce" not in answer.body + json.dumps(logs())


@pytest.mark.parametrize(
    ("body", "logged"),
    [
        pytest.param({"error": {"code": PRIVATE_TEXT}}, "unknown", id="text"),
        pytest.param({"error": {"code": "the_person_wrote_divorce"}}, "unknown", id="text that looks like a code"),
        pytest.param({"error": {"code": {"divorce": 1}}}, "unknown", id="no text"),
        pytest.param({"error": {"code": "context_length_exceeded"}}, "context_length_exceeded", id="a known one"),
        pytest.param({"error": {}}, "None", id="none"),
    ],
)
def test_codes_of_errors_are_logged_if_they_are_known(
    alice: Person, provider: Provider, logs: Logs, log_search: LogSearch, body: Json, logged: str
) -> None:
    """Any other code is the provider's own text."""
    log_search.add_texts([PRIVATE_TEXT])
    provider.answers = [JSONResponse(body, 400)]
    assert alice.say(f"hello, {PRIVATE_TEXT}").status == 502
    assert [line["reason"] for line in logs() if line["message"] == "model failed"] == [f"BadRequestError 400 {logged}"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(alice: Person, provider: Provider, standin: StandIn, status: int) -> None:
    """A healthy model waits at the other address, and no request reaches it."""
    provider.answers = [RedirectResponse(f"{standin.base_url}/responses", status)]
    assert alice.say("hello").status == 502
    assert len(provider.requests) == 1
    assert standin.requests() == []


ODD_ANSWERS = {
    "nothing": "",
    "a number": "1",
    "null": "null",
    "a text": '"hello"',
    "a list": '[{"output": []}]',
    "no field": "{}",
    "no output": '{"id": "r", "status": "completed", "output": null, "choices": null}',
    "an output that is none": '{"id": "r", "output": {"type": "message"}, "choices": {"message": {}}}',
    "items that are none": '{"id": "r", "output": [1, null, "x", []], "choices": [1, null]}',
    "an item of no type": '{"id": "r", "output": [{}], "choices": [{}]}',
    "a message without content": '{"id": "r", "output": [{"type": "message"}], "choices": [{"message": null}]}',
    "a call without a field": (
        '{"id": "r", "output": [{"type": "function_call"}], "choices": [{"message": {"tool_calls": [{}]}}]}'
    ),
    "the names of parameters": (
        '{"_fields_set": 1, "__cls": 1, "cls": 1, "self": 1, "values": 1, "output": [], "choices": []}'
    ),
    "nested too deeply": "[" * 100_000 + "]" * 100_000,
    "not a number": '{"id": NaN, "output": Infinity, "choices": -Infinity}',
    "no UTF-8": b'{"id": "\xff", "output": []}',
}


@BOTH_APIS
@pytest.mark.parametrize("answer", ODD_ANSWERS)
def test_an_answer_of_another_shape_is_refused(alice: Person, provider: Provider, answer: str) -> None:
    """The turn fails, and the next one succeeds."""
    provider.answers = [Response(ODD_ANSWERS[answer], media_type="application/json")]
    refused = alice.say("hello")
    assert refused.status == 502
    assert refused.json["type"].endswith(":model-failed")
    provider.answers = [response(api=os.environ["MODEL_API"])]
    assert alice.say("hello", refused.json["conversation_id"]).status == 200


def usage_of(number: Any) -> Json:
    """Return a usage with this number of tokens, by both APIs' names."""
    kinds = ("input", "prompt", "output", "completion", "total")
    return {f"{kind}_tokens": number for kind in kinds}


ODD_USAGES: dict[str, Any] = {
    "nothing": None,
    "a text": "many",
    "a list": [1, 2],
    "a number": 7,
    "true": True,
    "an empty object": {},
    "texts": usage_of("7"),
    "lists": usage_of([7]),
    "fractions": usage_of(7.5),
    "below zero": usage_of(-7),
    "the largest there is": usage_of(2**31 - 1),
    "details that are none": {"input_tokens": 9, "output_tokens": 9, "input_tokens_details": "x", "total_tokens": []},
}


@BOTH_APIS
@pytest.mark.parametrize("usage", ODD_USAGES)
def test_implausible_usage_fails_no_turn(
    alice: Person, provider: Provider, rows: Rows, usage: str, model_api: str
) -> None:
    """The turn is answered, and its cost is estimated: no user is locked out, and no turn is free."""
    provider.answers = [response(function_call("c"), api=model_api, usage=ODD_USAGES[usage])]
    provider.answers.append(response(api=model_api, usage=ODD_USAGES[usage]))
    assert alice.say("hello").status == 200
    (kept,) = rows.execute("select model_tokens from allowance where user_id = %s", [alice.id]).fetchall()
    assert 10 < kept["model_tokens"] < 5_000


DEPTHS = [65, 400, 500, 1_000, 10_000, 100_000]


@BOTH_APIS
@pytest.mark.parametrize("depth", DEPTHS)
def test_arguments_of_any_depth_are_a_failed_call(
    alice: Person, provider: Provider, depth: int, model_api: str
) -> None:
    """The tool may exist or not; the call fails now, in a resumed turn, and in the next turn."""
    deep = f'{{"{example.text}": ' + "[" * depth + "]" * depth + "}"
    calls = [function_call("c", name, deep) for name in (example.add_tool, "no_such_tool")]
    provider.answers = [response(*calls, api=model_api), Response("", 400)]
    assert alice.say("hello", key="k").status == 502
    provider.answers = [response(api=model_api)]
    answer = alice.say("hello", key="k")
    assert answer.status == 200
    made = answer.json["tool_calls"]
    assert [(one["arguments"], one["outcome"]) for one in made] == [({}, "error")] * 2
    assert alice.say("and now?", answer.json["conversation_id"]).status == 200
    assert arguments_sent(provider.requests[1]) == arguments_sent(provider.requests[-1]) == [{}, {}]


@BOTH_APIS
@pytest.mark.parametrize(
    ("status", "media_type"), [(200, "text/html"), (200, "text/event-stream"), (200, None), (204, None)]
)
def test_a_call_is_retried_when_the_answer_is_no_json(
    alice: Person, provider: Provider, logs: Logs, status: int, media_type: str | None
) -> None:
    """The content type does not matter. Each try is charged, because it may have a price."""
    provider.answers = [Response("<p>welcome</p>" if status == 200 else "", status, media_type=media_type)]
    assert alice.say("hello").status == 502
    assert len(provider.requests) == 3
    [ended] = [line for line in logs() if line["message"] == "turn interrupted"]
    assert (ended["requests"], ended["estimated_tokens"] % 3) == (0, 0)
    assert ended["estimated_tokens"] > 0


def test_a_request_that_cannot_be_written_is_not_sent(
    alice: Person, provider: Provider, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs nothing, it is not retried, and the log tells the operator what failed."""
    monkeypatch.setenv("OPENAI_API_KEY", "ké")
    reset_processes()
    assert alice.say("hello").status == 502
    assert provider.requests == []
    lines = logs()
    assert [line["estimated_tokens"] for line in lines if line["message"] == "turn interrupted"] == [0]
    assert [line["error"] for line in lines if line["message"] == "unexpected error"] == ["UnicodeEncodeError"]
    assert [line for line in lines if "trying again" in line["message"]] == []


@BOTH_APIS
def test_cookies_do_not_connect_turns(alice: Person, bob: Person, provider: Provider) -> None:
    """No later request sends a cookie that the provider has set, of this user or another."""
    provider.answers = [response(api=os.environ["MODEL_API"])]
    provider.answers[0].set_cookie("seen", "before")
    for person in (alice, bob, alice):
        assert person.say("hello").status == 200
    assert provider.cookies == [None] * 3


ODD_NAMES = [
    "multi_tool_use.parallel",
    f"functions.{example.add_tool}",
    "two words",
    "é",
    "a\0b",
    "x" * 64,
    "x" * 65,
    "",
    PRIVATE_TEXT,
]


@pytest.mark.parametrize("model", ["stand-in", "gpt-6-luna"])
@BOTH_APIS
class TestNames:
    """A call of an unknown tool may have any name, and providers refuse some names in later requests."""

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_an_odd_name_is_not_sent_back(
        self, alice: Person, provider: Provider, monkeypatch: pytest.MonkeyPatch, model_api: str, model: str, name: str
    ) -> None:
        """Its own turn and the next send the same replacement; the record keeps the name that the model wrote."""
        monkeypatch.setenv("MODEL", model)
        reset_processes()
        reasoning = [{"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x"}]
        first = (reasoning if model != "stand-in" and model_api == "responses" else []) + [function_call("c", name)]
        provider.answers = [response(*first, api=model_api), response(api=model_api)]
        answer = alice.say("hello").json
        alice.say("again", answer["conversation_id"])
        (made,) = answer["tool_calls"]
        assert (made["tool"], made["outcome"]) == (name.replace("\0", "\ufffd")[:64] or "unnamed", "error")
        live, replayed = provider.requests[1:]
        assert named_calls(live) == named_calls(replayed) == [(made["call_id"], "unnamed")]


@BOTH_APIS
def test_an_unknown_tool_s_arguments_are_kept(alice: Person, provider: Provider, rows: Rows, model_api: str) -> None:
    """The record holds the arguments as Postgres can store them, and later turns send them as this one did."""
    wanted = function_call("c", "send_email", json.dumps({"to": "bob\0", "n": [1, {"a": None}]}))
    provider.answers = [response(wanted, wanted | {"name": "call_bob"}, api=model_api), response(api=model_api)]
    answer = alice.say("hello").json
    expected = {"to": "bob\ufffd", "n": [1, {"a": None}]}
    assert [made["arguments"] for made in answer["tool_calls"]] == [expected, expected]
    kept = rows.execute("select arguments from tool_call where user_id = %s", [alice.id]).fetchall()
    assert [row["arguments"] for row in kept] == [expected, expected]
    alice.say("again", answer["conversation_id"])
    live, replayed = provider.requests[1:]
    assert arguments_sent(live) == arguments_sent(replayed) == [expected, expected]


LIMITS = {"max_output_tokens", "max_tokens", "max_completion_tokens"}


@pytest.mark.parametrize(
    ("model_api", "model", "name"),
    [
        ("responses", "stand-in", "max_output_tokens"),
        ("responses", "gpt-6-luna", "max_output_tokens"),
        ("chat_completions", "stand-in", "max_tokens"),
        ("chat_completions", "openai/gpt-6-luna", "max_completion_tokens"),
    ],
    indirect=["model_api"],
)
def test_each_request_limits_its_answer(
    alice: Person, standin: StandIn, monkeypatch: pytest.MonkeyPatch, model: str, name: str
) -> None:
    """The limit has the one name that its provider knows."""
    monkeypatch.setenv("MODEL", model)
    reset_processes()
    assert alice.say(example.add("milk")).status == 200
    assert [{n: b for n, b in r["body"].items() if n in LIMITS} for r in standin.requests()] == [{name: 8_000}] * 2


def efforts(standin: StandIn) -> list[Any]:
    """Return the effort of each request, by either API's name, or None."""
    bodies = [request["body"] for request in standin.requests()]
    return [body["reasoning"] if "reasoning" in body else body.get("reasoning_effort") for body in bodies]


class TestEffort:
    """REASONING_EFFORT reaches the models that take it, on both APIs, and no other."""

    @BOTH_APIS
    @pytest.mark.parametrize("model", ["stand-in", "gpt-6-luna"])
    @pytest.mark.parametrize("effort", ["none", "low", "medium", "high", "xhigh", "max"])
    def test_it_is_in_each_request(
        self, alice: Person, standin: StandIn, monkeypatch: pytest.MonkeyPatch, model_api: str, model: str, effort: str
    ) -> None:
        """Requests of a turn with a tool call have it, and those of the next turn."""
        monkeypatch.setenv("MODEL", model)
        monkeypatch.setenv("REASONING_EFFORT", effort)
        reset_processes()
        first = alice.say(example.add("milk"))
        assert first.status == 200
        assert alice.say(example.show(), first.json["conversation_id"]).status == 200
        assert efforts(standin) == [{"effort": effort} if model_api == "responses" else effort] * 4

    @BOTH_APIS
    @pytest.mark.parametrize(("model", "sent"), [("gpt-6-luna", "low"), ("openai/o3", "low"), ("stand-in", None)])
    def test_without_it_models_that_reason_get_a_low_effort(
        self, alice: Person, standin: StandIn, monkeypatch: pytest.MonkeyPatch, model_api: str, model: str, sent: Any
    ) -> None:
        """A model of another name might refuse the parameter."""
        monkeypatch.setenv("MODEL", model)
        reset_processes()
        assert alice.say("hello").status == 200
        assert efforts(standin) == [{"effort": sent} if sent and model_api == "responses" else sent]

    @BOTH_APIS
    def test_an_empty_setting_leaves_it_to_the_provider(
        self, alice: Person, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No request names it."""
        monkeypatch.setenv("MODEL", "gpt-6-luna")
        monkeypatch.setenv("REASONING_EFFORT", "")
        reset_processes()
        assert alice.say("hello").status == 200
        assert efforts(standin) == [None]

    @BOTH_APIS
    @pytest.mark.parametrize(("fallback", "takes_it"), [("gpt-4.1", False), ("gpt-5-mini", True)])
    def test_a_fallback_gets_it_if_it_reasons(
        self,
        alice: Person,
        standin: StandIn,
        monkeypatch: pytest.MonkeyPatch,
        model_api: str,
        fallback: str,
        takes_it: bool,
    ) -> None:
        """A fallback that refuses the parameter would answer no request."""
        monkeypatch.setenv("MODEL", "gpt-6-luna")
        monkeypatch.setenv("MODEL_FALLBACK", fallback)
        reset_processes()
        standin.fault("server_error", match="hello", times=3)
        assert alice.say("hello").status == 200
        low = {"effort": "low"} if model_api == "responses" else "low"
        assert efforts(standin) == [low] * 3 + [low if takes_it else None]

    @pytest.mark.parametrize(
        ("model", "sent"), [("gpt-4.1", None), ("gpt-5-chat-latest", None), ("gpt-6-luna", "high")]
    )
    def test_at_openai_s_own_address_the_model_s_name_decides(self, model: str, sent: str | None) -> None:
        """The template always sets an effort, also for models that do not reason."""
        from chat.reasoning import effort

        given = effort(Settings(DATABASE_URL="postgresql://u:p@localhost/d", MODEL=model, REASONING_EFFORT="high"))
        assert (given and given.effort) == sent


def test_openai_s_own_chat_completions_get_the_newer_name_of_the_limit() -> None:
    """That holds for every model if no other address is set."""
    from chat.agent import MAX_OUTPUT_TOKENS, _model_settings

    given = _model_settings(
        Settings(DATABASE_URL="postgresql://u:p@localhost/d", MODEL_API="chat_completions", MODEL="gpt-4o")
    )
    assert (given.max_tokens, given.extra_args) == (None, {"max_completion_tokens": MAX_OUTPUT_TOKENS})
