"""Send generated requests and events: requests from the API's own description, and gateway events of any shape.

Promises: no answer has a 5xx, an undocumented status, another user's text, a path of the program or the text of an
exception. No handler raises. Every example comes from one seed, which is printed with the number of cases.
"""

import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import schemathesis.openapi
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from dev.postgres import Postgres
from testing.callers import AUTH, RESOURCE
from testing.gateway import Handler, LambdaContext, event
from tests import personal_data
from tests.conftest import ROOT, Person, reset_processes, serving
from tests.db_assertions import Rows
from tests.domain import example
from tests.streams import SSE
from tests.tally import report_at_end
from tests.test_docs import mcp_statuses
from tests.test_middleware import EXPECTED

Tally = defaultdict[str, Counter[int]]
Check = Callable[[Any], None]

SEED = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(10**6))
LENGTH = 5 if "THOROUGH" in os.environ else 1
PER_STRATEGY = 150 * LENGTH
"""Requests of each strategy over HTTP. Some of them are whole turns."""
EVENTS = 500 * LENGTH
"""Events of each kind, for each function."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
CONFIG = SchemathesisConfig.from_dict(
    {"checks": {"negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 413, 415, 422, 428]}}}
)
"""The statuses that refuse a request that breaks the description. A long message may get 413."""
DATA_ROUTES = [
    (path, method)
    for path, methods in json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"].items()
    for method in methods
    if (path, method) not in [("/api/{user_id}/chat", "post"), ("/health", "get"), ("/api/{user_id}", "delete")]
]
"""The routes of a person's own data, without the one that erases the person."""
DOCUMENTED = {
    "chat": {200, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422},
    "mcp": {status for status in mcp_statuses() if status < 429},
}
"""The documented statuses of each function when it works."""
SECRET = "grandmother surprise"
"""A text of another user."""
INSIDE = re.compile(
    r"Traceback|site-packages|\.py\b|/functions/|/shared/|pydantic|psycopg|pg8000|sqlalchemy|mangum", re.I
)
"""Texts that only the program's inside contains."""


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Give Postgres's own URL: only the requests differ."""
    return server.app_url


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Count each status, and report the counts at the end of the run."""
    tally: Tally = defaultdict(Counter)
    yield tally
    for name, statuses in tally.items():
        found = ", ".join(f"{status} {count} times" for status, count in sorted(statuses.items()))
        report_at_end(request.config, f"{name}: {statuses.total()} cases with seed {SEED}: {found}")


@pytest.fixture
def bob(bob: Person) -> Person:
    """Return another user who has a secret."""
    assert bob.say(example.add(SECRET)).json["tool_calls"][0]["outcome"] == "ok"
    reset_processes()  # a server runs in its own loop, which cannot use this loop's connections
    return bob


def check_examples(strategy: SearchStrategy[Any], count: int, check: Check) -> None:
    """Check this many check_examples, the same for the same seed, and report the smallest that fails."""
    plan = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],  # the same handlers and examples in each run
        suppress_health_check=list(HealthCheck),
    )

    def attempt(value: Any) -> None:
        check(value)

    seed(SEED)(plan(given(strategy)(attempt)))()


def describe(app: Any) -> dict[str, Any]:
    """Return the description for Schemathesis, which reads the schema of a stream as that of one event."""
    description: dict[str, Any] = deepcopy(app.openapi())
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    for content in (answer.get("content", {}) for each in operations for answer in each["responses"].values()):
        if SSE in content:
            content[SSE] = {"schema": {"type": "object", "required": ["data"]}}
    for body, text in (("ChatRequest", "message"), ("Renaming", "title")):  # spaces at the ends do not count
        del description["components"]["schemas"][body]["properties"][text]["maxLength"]
    return description


def assert_discreet(answer: str, bob: Person) -> None:
    """Check that the answer contains no other user's data and no text from inside the program."""
    assert SECRET not in answer
    assert bob.id not in answer
    assert not INSIDE.search(answer)


class TestDescription:
    """Schemathesis sends requests that fit the OpenAPI description, and requests that break it in one place."""

    @pytest.fixture
    def seen(self, tally: Tally) -> Iterator[Counter[int]]:
        """Count each status of this test."""
        statuses: Counter[int] = Counter()
        yield statuses
        tally["Schemathesis"] += statuses

    def run(self, case: Case, *, seen: Counter[int], bob: Person, token: str | None, url: str) -> None:
        """Send one request over HTTP, and check the answer against the description."""
        headers = {"Authorization": f"Bearer {token}"} if token else None
        response = case.call(base_url=url, headers=headers, timeout=30)
        case.validate_response(response, checks=CHECKS)
        assert {name: response.headers.get(name) for name in EXPECTED} == {n: [v] for n, v in EXPECTED.items()}
        assert_discreet(response.text, bob)
        seen[response.status_code] += 1

    def strategy(self, mode: GenerationMode, *, own: Person | None = None) -> SearchStrategy[Case]:
        """Return a strategy for chat requests at the user's own path, or at any path. The test sets the credentials."""
        from chat.app import app

        description = describe(app)
        del description["paths"]["/api/{user_id}/chat"]["post"]["security"]
        operation = schemathesis.openapi.from_dict(description, config=CONFIG)["/api/{user_id}/chat"]["POST"]
        return operation.as_strategy(mode, path_parameters={"user_id": own.id} if own else None)

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
    def test_authenticated_requests_at_the_own_path(
        self, alice: Person, bob: Person, seen: Counter[int], mode: GenerationMode
    ) -> None:
        """A request that fits gets a 200 or a refusal. A request that breaks the description is refused."""
        from chat.app import app

        with serving(app) as url:
            check = partial(self.run, seen=seen, bob=bob, token=alice.token, url=url)
            check_examples(self.strategy(mode, own=alice), PER_STRATEGY, check)
        assert seen[200] if mode is GenerationMode.POSITIVE else not seen[200]

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
    def test_authenticated_requests_at_any_path(
        self, alice: Person, bob: Person, seen: Counter[int], mode: GenerationMode
    ) -> None:
        """The path is not there, or is another user's."""
        from chat.app import app

        with serving(app) as url:
            check = partial(self.run, seen=seen, bob=bob, token=alice.token, url=url)
            check_examples(self.strategy(mode), PER_STRATEGY, check)
        assert seen.keys() <= {403, 404}

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
    @pytest.mark.parametrize("token", [None, "x.y.z"], ids=["no token", "a bad token"])
    def test_unauthenticated_requests(
        self, alice: Person, bob: Person, seen: Counter[int], mode: GenerationMode, token: str | None
    ) -> None:
        """Each gets a 401, whatever else it contains."""
        from chat.app import app

        with serving(app) as url:
            check = partial(self.run, seen=seen, bob=bob, token=token, url=url)
            check_examples(self.strategy(mode, own=alice), PER_STRATEGY // 2, check)
        assert seen.keys() == {401}

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
    @pytest.mark.parametrize("route", DATA_ROUTES, ids=" ".join)
    def test_requests_for_a_persons_own_data(
        self, alice: Person, bob: Person, seen: Counter[int], mode: GenerationMode, route: tuple[str, str]
    ) -> None:
        """Each request gets its result or a refusal: with a token, without one, and at the path of another person."""
        from chat.app import app

        path, method = route
        if mode is GenerationMode.NEGATIVE and (method == "delete" or path.endswith("/stream")):
            return  # the request has only its path, which no text can break
        description = describe(app)
        del description["paths"][path][method]["security"]
        operation = schemathesis.openapi.from_dict(description, config=CONFIG)[path][method.upper()]
        own = alice.say(example.add("milk")).json["conversation_id"]
        theirs = bob.say("hello").json["conversation_id"]
        reset_processes()
        with serving(app) as url:
            for person, conversation, token in (
                (alice, own, alice.token),
                (alice, theirs, alice.token),
                (alice, own, None),
                (bob, theirs, alice.token),
            ):
                ids = {"user_id": person.id} | (
                    {"conversation_id": conversation} if "{conversation_id}" in path else {}
                )
                check = partial(self.run, seen=seen, bob=bob, token=token, url=url)
                check_examples(operation.as_strategy(mode, path_parameters=ids), PER_STRATEGY // 10, check)
        assert seen.keys() <= {200, 204, 400, 401, 403, 404, 413, 415, 422}
        assert seen[401] >= PER_STRATEGY // 10 or mode is GenerationMode.POSITIVE

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
    def test_erasures(self, alice: Person, bob: Person, seen: Counter[int], mode: GenerationMode, rows: Rows) -> None:
        """A request with its header erases its own person, and another one is refused. No other person loses a row."""
        from chat.app import app

        before = personal_data.versions(rows, bob.id)
        path, allowed = "/api/{user_id}", {204} if mode is GenerationMode.POSITIVE else {400, 422, 428}
        description = describe(app)
        del description["paths"][path]["delete"]["security"]
        operation = schemathesis.openapi.from_dict(description, config=CONFIG)[path]["DELETE"]
        with serving(app) as url:
            for person, token, statuses in (
                (alice, alice.token, allowed),
                (bob, alice.token, {403}),
                (bob, None, {401}),
            ):
                found: Counter[int] = Counter()
                check = partial(self.run, seen=found, bob=bob, token=token, url=url)
                ids = {"user_id": person.id}
                check_examples(operation.as_strategy(mode, path_parameters=ids), PER_STRATEGY // 10, check)
                assert found.keys() <= statuses
                seen += found
        assert personal_data.versions(rows, bob.id) == before

    def test_health_requests(self, alice: Person, bob: Person, seen: Counter[int]) -> None:
        """Each caller gets a 200."""
        from chat.app import app

        with serving(app) as url:
            operation = schemathesis.openapi.from_dict(app.openapi())["/health"]["GET"]
            check_examples(operation.as_strategy(), 1, partial(self.run, seen=seen, bob=bob, token=None, url=url))
        assert seen.keys() == {200}


def mostly(*usual: Any, odd: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Return a strategy for usual values with an odd one now and then.

    With odd values only, the first check refuses all.
    """
    return st.integers(0, 7).flatmap(lambda lot: st.sampled_from(usual) if lot else odd)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
"""Any text, with lone surrogates: JSON can contain them, and so can an event."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
ASCII = st.text(st.characters(codec="ascii"), max_size=30)
MESSAGE = st.fixed_dictionaries(
    {"message": mostly(example.add("milk"), example.show(), odd=ANY_TEXT | JSON)},
    optional={
        "conversation_id": mostly(None, odd=JSON | st.uuids().map(str)),
        "timezone": mostly("Europe/Paris", None, odd=JSON),
    },
)
CALL = st.fixed_dictionaries(
    {"jsonrpc": mostly("2.0", odd=JSON), "method": mostly("tools/list", "tools/call", "ping", odd=JSON)},
    optional={
        "id": mostly(1, "a", odd=JSON),
        "params": st.fixed_dictionaries(
            {"name": st.sampled_from([example.add_tool, example.list_tool, example.delete_tool]) | JSON},
            optional={
                "arguments": st.dictionaries(st.sampled_from([example.text, example.id_argument, "user_id"]), JSON)
                | JSON
            },
        )
        | JSON,
    },
)
BODIES = {"chat": MESSAGE, "mcp": CALL}
TEXTS = {
    function: mostly(good, odd=st.sampled_from([JSON, ANY_TEXT])).flatmap(lambda kind: kind.map(json.dumps))
    for function, good in BODIES.items()
}
PIECES = ["", "api", "chat", "mcp", "health", "..", ".", "%2e", "%2f", "%00", ";", ".well-known", "\u0430", "x" * 500]
PLACES = [
    *[
        ["headers"],
        ["headers", "host"],
        ["headers", "authorization"],
        ["headers", "content-type"],
        ["body"],
        ["version"],
    ],
    *[["isBase64Encoded"], ["requestContext"], ["requestContext", "http"], ["requestContext", "http", "method"]],
    *[["requestContext", "http", "path"], ["requestContext", "http", "sourceIp"], ["requestContext", "timeEpoch"]],
    *[["requestContext", "requestId"], ["requestContext", "elb"], ["cookies"], ["rawQueryString"], ["rawPath"]],
    *[["headers", "x-forwarded-port"], ["headers", "mcp-protocol-version"], ["headers", "accept"]],
    *[["headers", "idempotency-key"], ["multiValueHeaders"], ["Records"], ["resource"], ["queryStringParameters"]],
]


def mutated(request: dict[str, Any], changes: list[tuple[list[str], Any]]) -> dict[str, Any]:
    """Return the event with other values in some places. The value `...` removes the place."""
    changed = json.loads(json.dumps(request))
    for (*parents, last), value in changes:
        inner = changed
        for name in parents:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(last, None) if value is ... else inner.update({last: value})
    return changed


def requests(alice: Person, bob: Person, function: str) -> SearchStrategy[dict[str, Any]]:
    """Return a strategy for events of the gateway, for requests of any kind."""
    token, own = (alice.token, f"/api/{alice.id}/chat") if function == "chat" else (alice.mcp_token, "/mcp")
    others = [alice.mcp_token, alice.token, bob.issuer.mint("x/y", issuer=AUTH, audience=RESOURCE), "x", ""]
    lists = [f"/api/{person.id}/conversations" for person in (alice, bob)]
    known = ["/mcp", f"/api/{bob.id}/chat", *lists, "/health", "/.well-known/oauth-protected-resource"]
    odd = st.lists(st.sampled_from(PIECES), max_size=5).map(lambda pieces: "/" + "/".join(pieces))
    headers = st.fixed_dictionaries(
        {
            "authorization": mostly(token, odd=st.sampled_from(others)).map(lambda token: f"Bearer {token}"),
            "content-type": mostly("application/json", odd=ANY_TEXT),
            "accept": mostly("application/json, text/event-stream", odd=ANY_TEXT),
            "host": mostly("api.example.com", odd=st.sampled_from(["x:abc", "[::1]:1", ""]) | ANY_TEXT),
            "origin": mostly("https://api.example.com", odd=st.just("null") | ANY_TEXT),
            "mcp-protocol-version": mostly("2025-11-25", "2026-07-28", odd=ANY_TEXT),
        },
        optional={
            "idempotency-key": mostly("a", "b", odd=ANY_TEXT),
            "mcp-method": mostly("tools/list", "tools/call", odd=ANY_TEXT),
            "content-length": ASCII,
            "x-forwarded-port": ASCII,
            "cookie": ASCII,
        },
    )
    return st.builds(
        lambda method, path, headers, body, encoded, query, cookies: (
            event(method, path, headers=headers)
            | {"body": body, "isBase64Encoded": encoded, "rawQueryString": query, "cookies": cookies}
        ),
        mostly("POST", odd=st.sampled_from(["GET", "PATCH", "DELETE", "OPTIONS", "HEAD"]) | ANY_TEXT),
        mostly(own, odd=st.sampled_from(known) | odd | ANY_TEXT),
        headers,
        TEXTS[function],
        mostly(False, odd=st.just(True)),
        ASCII,
        st.lists(ASCII, max_size=2),
    )


@pytest.mark.parametrize("function", ["chat", "mcp"])
class TestEvents:
    """Hypothesis calls the handlers directly with events of any shape."""

    @pytest.fixture
    def check(self, function: str, bob: Person, tally: Tally) -> Check:
        """Invoke the function and check its answer to Lambda."""
        handler = self.handler(function)

        def check(request: Any) -> None:
            answer = handler(request, LambdaContext())
            assert answer["statusCode"] in DOCUMENTED[function], answer
            assert {name: answer["headers"].get(name) for name in EXPECTED} == EXPECTED
            assert_discreet(json.dumps(answer), bob)
            tally[f"events for {function}"][int(answer["statusCode"])] += 1

        return check

    def handler(self, function: str) -> Handler:
        """Return the function's handler."""
        from chat.app import handler as chat
        from mcp_tools.app import handler as mcp

        return chat if function == "chat" else mcp

    def test_any_request(self, function: str, alice: Person, bob: Person, check: Check) -> None:
        """The gateway could write these events."""
        check_examples(requests(alice, bob, function), EVENTS, check)

    def test_changed_events(self, function: str, alice: Person, bob: Person, check: Check) -> None:
        """A good event has other values in some places, or lacks them."""
        change = st.tuples(st.sampled_from(PLACES), JSON | st.just(...))
        good = st.builds(mutated, requests(alice, bob, function), st.lists(change, min_size=1, max_size=4))
        check_examples(good, EVENTS, check)

    def test_any_json(self, check: Check) -> None:
        """A developer may type this into the console."""
        check_examples(JSON, EVENTS // 2, check)
