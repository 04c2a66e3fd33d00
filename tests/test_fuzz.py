"""Requests that nobody thought of: made from the API's own description, and gateway events of any shape at all.

Promises: no 5xx, no status that is not documented, no exception, and in no answer a word of somebody else's, a path of
the program's or the text of an exception. Every example comes from one seed, which is told with the number of cases.
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
from tests.conftest import Person, forget, serving
from tests.tally import tell_at_the_end
from tests.test_docs import mcp_statuses
from tests.test_guards import EXPECTED

Tally = defaultdict[str, Counter[int]]
Check = Callable[[Any], None]

SEED = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(10**6))
LENGTH = 5 if "THOROUGH" in os.environ else 1
PER_STRATEGY = 150 * LENGTH
"""Requests of each strategy over HTTP, some of which are whole turns."""
EVENTS = 500 * LENGTH
"""Events of each kind, for each door."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
CONFIG = SchemathesisConfig.from_dict(
    {"checks": {"negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 413, 415, 422]}}}
)
"""How a request that breaks the description is refused. Besides what is usual, 413: a long message may be that too."""
DOCUMENTED = {
    "chat": {200, 400, 401, 403, 404, 405, 409, 413, 415, 422},
    "mcp": {status for status in mcp_statuses() if status < 429},
}
"""What the two functions answer to a caller when nothing is wrong on their side."""
SECRET = "grandmother's birthday present"
"""A task of somebody else's."""
INSIDE = re.compile(
    r"Traceback|site-packages|\.py\b|/functions/|/shared/|pydantic|psycopg|pg8000|sqlalchemy|mangum", re.I
)
"""What only the inside of the program would say."""


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Postgres itself: it is the requests that differ."""
    return server.app_url


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """How often each status was answered, told at the end of the run."""
    tally: Tally = defaultdict(Counter)
    yield tally
    for name, statuses in tally.items():
        found = ", ".join(f"{status} {count} times" for status, count in sorted(statuses.items()))
        tell_at_the_end(request.config, f"{name}: {statuses.total()} cases with seed {SEED}: {found}")


@pytest.fixture
def bob(bob: Person) -> Person:
    """Somebody else, who has a secret."""
    assert bob.say(f"Add {SECRET}").json["tool_calls"][0]["outcome"] == "ok"
    forget()  # a server runs in a loop of its own, where connections of this one are of no use
    return bob


def examples(strategy: SearchStrategy[Any], count: int, check: Check) -> None:
    """Check as many examples, the same for the same seed, and tell of the smallest that fails."""
    plan = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],  # handlers and examples are the same each time
        suppress_health_check=list(HealthCheck),
    )

    def attempt(example: Any) -> None:
        check(example)

    seed(SEED)(plan(given(strategy)(attempt)))()


def assert_discreet(answer: str, bob: Person) -> None:
    """Nothing of anybody else's, and nothing from inside."""
    assert SECRET not in answer
    assert bob.id not in answer
    assert not INSIDE.search(answer)


class TestDescription:
    """Schemathesis: requests that fit the OpenAPI description, and requests that break it in one place."""

    @pytest.fixture
    def seen(self, tally: Tally) -> Iterator[Counter[int]]:
        """How often each status was answered in this test."""
        statuses: Counter[int] = Counter()
        yield statuses
        tally["Schemathesis"] += statuses

    def run(self, case: Case, *, seen: Counter[int], bob: Person, token: str | None, url: str) -> None:
        """Send one request over HTTP, and hold the answer against the description."""
        headers = {"Authorization": f"Bearer {token}"} if token else None
        response = case.call(base_url=url, headers=headers, timeout=30)
        case.validate_response(response, checks=CHECKS)
        assert {name: response.headers.get(name) for name in EXPECTED} == {n: [v] for n, v in EXPECTED.items()}
        assert_discreet(response.text, bob)
        seen[response.status_code] += 1

    def strategy(self, mode: GenerationMode, *, own: Person | None = None) -> SearchStrategy[Case]:
        """Requests to chat: at one's own path, or at any. What they say of who is calling is left to the test."""
        from chat.app import app

        description = deepcopy(app.openapi())
        del description["paths"]["/api/{user_id}/chat"]["post"]["security"]
        operation = schemathesis.openapi.from_dict(description, config=CONFIG)["/api/{user_id}/chat"]["POST"]
        return operation.as_strategy(mode, path_parameters={"user_id": own.id} if own else None)

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
    def test_authenticated(self, alice: Person, bob: Person, seen: Counter[int], mode: GenerationMode) -> None:
        """At one's own path: what fits is done or named at fault, and what breaks the description is refused."""
        from chat.app import app

        with serving(app) as url:
            check = partial(self.run, seen=seen, bob=bob, token=alice.token, url=url)
            examples(self.strategy(mode, own=alice), PER_STRATEGY, check)
        assert seen[200] if mode is GenerationMode.POSITIVE else not seen[200]

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
    def test_at_any_path(self, alice: Person, bob: Person, seen: Counter[int], mode: GenerationMode) -> None:
        """With a good token at a path of somebody's or nobody's: it is not there, or not theirs."""
        from chat.app import app

        with serving(app) as url:
            check = partial(self.run, seen=seen, bob=bob, token=alice.token, url=url)
            examples(self.strategy(mode), PER_STRATEGY, check)
        assert seen.keys() <= {403, 404}

    @pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
    @pytest.mark.parametrize("token", [None, "x.y.z"], ids=["no token", "a bad token"])
    def test_unauthenticated(
        self, alice: Person, bob: Person, seen: Counter[int], mode: GenerationMode, token: str | None
    ) -> None:
        """Whatever else the request says, it is a 401."""
        from chat.app import app

        with serving(app) as url:
            check = partial(self.run, seen=seen, bob=bob, token=token, url=url)
            examples(self.strategy(mode, own=alice), PER_STRATEGY // 2, check)
        assert seen.keys() == {401}

    def test_health(self, alice: Person, bob: Person, seen: Counter[int]) -> None:
        """It says so to everybody."""
        from chat.app import app

        with serving(app) as url:
            operation = schemathesis.openapi.from_dict(app.openapi())["/health"]["GET"]
            examples(operation.as_strategy(), 1, partial(self.run, seen=seen, bob=bob, token=None, url=url))
        assert seen.keys() == {200}


def mostly(*usual: Any, odd: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """One of the usual values, and now and then an odd one: what is odd everywhere is refused at the first step."""
    return st.integers(0, 7).flatmap(lambda lot: st.sampled_from(usual) if lot else odd)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
"""Any at all, half surrogate pairs too: JSON can write them, and so can whoever invokes the function."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
ASCII = st.text(st.characters(codec="ascii"), max_size=30)
MESSAGE = st.fixed_dictionaries(
    {"message": mostly("Add milk", "What is left?", odd=ANY_TEXT | JSON)},
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
            {"name": st.sampled_from(["add_task", "list_tasks", "delete_task"]) | JSON},
            optional={"arguments": st.dictionaries(st.sampled_from(["title", "task_id", "user_id"]), JSON) | JSON},
        )
        | JSON,
    },
)
BODIES = {"chat": MESSAGE, "mcp": CALL}
TEXTS = {
    door: mostly(good, odd=st.sampled_from([JSON, ANY_TEXT])).flatmap(lambda kind: kind.map(json.dumps))
    for door, good in BODIES.items()
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
    """The event with other values in some places, or without them where the value is `...`."""
    changed = json.loads(json.dumps(request))
    for (*parents, last), value in changes:
        inner = changed
        for name in parents:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(last, None) if value is ... else inner.update({last: value})
    return changed


def requests(alice: Person, bob: Person, door: str) -> SearchStrategy[dict[str, Any]]:
    """Events as the gateway could write them, for requests of any kind."""
    token, own = (alice.token, f"/api/{alice.id}/chat") if door == "chat" else (alice.mcp_token, "/mcp")
    others = [alice.mcp_token, alice.token, bob.issuer.mint("x/y", issuer=AUTH, audience=RESOURCE), "x", ""]
    known = ["/mcp", f"/api/{bob.id}/chat", "/health", "/.well-known/oauth-protected-resource"]
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
        mostly("POST", odd=st.sampled_from(["GET", "DELETE", "OPTIONS", "HEAD"]) | ANY_TEXT),
        mostly(own, odd=st.sampled_from(known) | odd | ANY_TEXT),
        headers,
        TEXTS[door],
        mostly(False, odd=st.just(True)),
        ASCII,
        st.lists(ASCII, max_size=2),
    )


@pytest.mark.parametrize("door", ["chat", "mcp"])
class TestEvents:
    """Hypothesis: events of any shape, straight into the handlers."""

    @pytest.fixture
    def check(self, door: str, bob: Person, tally: Tally) -> Check:
        """Invoke the function and look at what it gives back to Lambda."""
        handler = self.handler(door)

        def check(request: Any) -> None:
            answer = handler(request, LambdaContext())
            assert answer["statusCode"] in DOCUMENTED[door], answer
            assert {name: answer["headers"].get(name) for name in EXPECTED} == EXPECTED
            assert_discreet(json.dumps(answer), bob)
            tally[f"events for {door}"][int(answer["statusCode"])] += 1

        return check

    def handler(self, door: str) -> Handler:
        """The function behind a door."""
        from chat.app import handler as chat
        from mcp_tools.app import handler as mcp

        return chat if door == "chat" else mcp

    def test_requests(self, door: str, alice: Person, bob: Person, check: Check) -> None:
        """As the gateway would write them, whatever was sent."""
        examples(requests(alice, bob, door), EVENTS, check)

    def test_mutations(self, door: str, alice: Person, bob: Person, check: Check) -> None:
        """A good event with other values in some places, or without them."""
        change = st.tuples(st.sampled_from(PLACES), JSON | st.just(...))
        good = st.builds(mutated, requests(alice, bob, door), st.lists(change, min_size=1, max_size=4))
        examples(good, EVENTS, check)

    def test_anything(self, check: Check) -> None:
        """JSON, such as a person may type into the console."""
        examples(JSON, EVENTS // 2, check)
