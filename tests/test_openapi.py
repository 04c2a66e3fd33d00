"""The OpenAPI description is true: its examples are answered as it says, and each answer fits its schema."""

import json
import tomllib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from jsonschema import Draft202012Validator

from chat.description import NEVER_ANSWERED, answered_errors
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from taskchat import errors
from taskchat.version import VERSION
from testing.gateway import Response, event, invoke
from tests.conftest import ROOT, Person
from tests.domain import example
from tests.streams import SSE

Described = dict[str, Any]

DOCUMENT: Described = json.loads((ROOT / "docs" / "openapi.json").read_text())
OPERATIONS: dict[str, tuple[str, str, Described]] = {
    operation["operationId"]: (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
ENGINE_OPERATIONS = {
    "sendMessage",
    "resumeTurn",
    "checkHealth",
    "listConversations",
    "getConversation",
    "renameConversation",
    "deleteConversation",
    "exportData",
    "eraseData",
}
JSON, PROBLEM = "application/json", "application/problem+json"


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Use Postgres directly: the description does not depend on the pooler."""
    return server.app_url


def validator(schema: Any) -> Draft202012Validator:
    """Return a validator of the schema, which may refer to the document's components."""
    return Draft202012Validator({"components": DOCUMENT["components"], "allOf": [schema]})


def check(schema: Any, value: Any) -> None:
    """Check that the value fits the schema."""
    assert [error.message for error in validator(schema).iter_errors(value)] == []


def examples_of(content: Described) -> list[Any]:
    """Return the examples of a media type, or of a parameter."""
    found = [each["value"] for each in content.get("examples", {}).values()]
    return [*found, *([content["example"]] if "example" in content else [])]


def schemas_in(value: Any) -> Iterator[Described]:
    """Yield every object in the value: each schema is one."""
    if isinstance(value, list):
        for each in value:
            yield from schemas_in(each)
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from schemas_in(each)


def is_described(operation: Described, answer: Response) -> bool:
    """Check an answer against the operation: its status, its kind and its body."""
    described = operation["responses"][str(answer.status)]
    if answer.status == 204:
        return not answer.body
    kind = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][kind]["schema"]
    check(schema, answer.body if kind == SSE else answer.json)
    return True


class TestOperations:
    """Each operation can be called by its name."""

    def test_the_names_are_these(self) -> None:
        """A generated client has a method of each name. The domain has its own."""
        assert OPERATIONS.keys() >= ENGINE_OPERATIONS

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_it_says_what_it_is_for(self, name: str) -> None:
        """It has a summary, a description, a tag that is described, and a description of each parameter."""
        _, _, operation = OPERATIONS[name]
        assert operation["summary"]
        assert operation["description"]
        described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
        assert set(operation["tags"]) <= described
        for parameter in operation.get("parameters", []):
            assert parameter["description"] or "enum" in parameter["schema"], parameter["name"]

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_it_says_which_token_it_needs(self, name: str) -> None:
        """Only the health check needs none."""
        _, _, operation = OPERATIONS[name]
        assert operation["security"] == ([] if name == "checkHealth" else [{"bearer": []}])

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_its_examples_fit_its_schemas(self, name: str) -> None:
        """Those of requests, of answers and of problems. Each answer with a body has one."""
        _, _, operation = OPERATIONS[name]
        answers = [
            content for answer in operation["responses"].values() for content in answer.get("content", {}).values()
        ]
        bodies = list(operation.get("requestBody", {}).get("content", {}).values())
        for content in [*answers, *bodies]:
            assert examples_of(content) or name not in ENGINE_OPERATIONS
            for value in examples_of(content):
                check(content["schema"], value)

    @pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "eraseData"])
    def test_its_example_is_answered_as_described(self, alice: Person, name: str) -> None:
        """The request of each example, with the parameters' examples, has its answer: no problem."""
        path, method, operation = OPERATIONS[name]
        conversation_id = alice.say(example.add("milk")).json["conversation_id"]
        for number, body in enumerate(bodies_of(operation)):
            answer = send(alice, path, method, operation, body, conversation_id, f"{name}-{number}")
            assert answer.status < 300, answer.body
            assert is_described(operation, answer)

    def test_the_example_of_an_erasure_erases(self, alice: Person) -> None:
        """With the header of the example."""
        path, method, operation = OPERATIONS["eraseData"]
        alice.say(example.add("milk"))
        answer = send(alice, path, method, operation, None, "", "k")
        assert answer.status == 204
        assert alice.get("/conversations").json["conversations"] == []


def bodies_of(operation: Described) -> list[Any]:
    """Return the bodies of the examples, or none."""
    content = operation.get("requestBody", {}).get("content", {}).get(JSON)
    return examples_of(content) if content else [None]


def send(
    person: Person, path: str, method: str, operation: Described, body: Any, conversation_id: str, key: str
) -> Response:
    """Send the operation's example to the handler, for this person, in this conversation."""
    from chat.app import handler

    parameters = [(each, sample(each)) for each in operation.get("parameters", [])]
    sent = {each["name"]: value for each, value in parameters if each["in"] == "header"} | {"Idempotency-Key": key}
    query = {each["name"]: value for each, value in parameters if each["in"] == "query" and value is not None}
    headers = {name: value for name, value in sent.items() if value is not None}
    place = path.format(user_id=person.id, conversation_id=conversation_id, id=quote(conversation_id))
    headers |= {"authorization": f"Bearer {person.token}"} | ({} if body is None else {"content-type": JSON})
    raw = b"" if body is None else json.dumps(body).encode()
    lower = {name.lower(): value for name, value in headers.items()}
    return invoke(handler, event(method.upper(), place, headers=lower, body=raw, query=urlencode(query)))


def sample(parameter: Described) -> Any:
    """Return the parameter's example, if it has one."""
    return parameter.get("example", next(iter(parameter["schema"].get("examples", [])), None))


class TestProblems:
    """Each problem type has a schema of its own."""

    def test_every_error_of_the_api_has_one(self) -> None:
        """A new error is described without more, unless it is said to be no answer of this API."""
        types = {
            schema["properties"]["type"]["const"]: schema["properties"]["status"]["const"]
            for name, schema in DOCUMENT["components"]["schemas"].items()
            if name.endswith("Problem") and "properties" in schema
        }
        assert types == {f"urn:taskchat:problem:{error.slug}": error.status for error in answered_errors()}
        left = {error.slug for error in NEVER_ANSWERED}
        known = [errors.TaskchatError, *vars(errors).values()]
        slugs = {kind.slug for kind in known if isinstance(kind, type) and issubclass(kind, errors.TaskchatError)}
        assert {error.slug for error in answered_errors()} == slugs - left

    def test_every_problem_type_is_an_answer_of_an_operation(self) -> None:
        """And stands under its own status."""
        used = set()
        for _, _, operation in OPERATIONS.values():
            for status, answer in operation["responses"].items():
                for value in examples_of(answer.get("content", {}).get(PROBLEM, {})):
                    assert value["status"] == int(status)
                    used.add(value["type"])
        assert used == {f"urn:taskchat:problem:{error.slug}" for error in answered_errors()}

    def test_a_turn_s_problem_fits_its_type_and_no_other(self, alice: Person, standin: StandIn) -> None:
        """With the conversation, the turn and the calls that took effect."""
        standin.fault("server_error", match=example.add("milk"), times=None, after_calls=1)
        answer = alice.say(example.add("milk"))
        assert answer.status == 502
        fitting = [
            name
            for name, schema in DOCUMENT["components"]["schemas"].items()
            if name.endswith("Problem") and name != "Problem" and validator(schema).is_valid(answer.json)
        ]
        assert fitting == ["ModelFailedProblem"]


class TestStreams:
    """A stream's events are described as they are once their data is parsed."""

    @pytest.mark.parametrize("fails", [False, True])
    def test_each_event_of_a_turn_fits(self, alice: Person, standin: StandIn, fails: bool) -> None:
        """Of a turn that finishes, and of one that fails after a call."""
        if fails:
            standin.fault("server_error", match="milk", times=None, after_calls=1)
        answer = alice.post({"message": f"{example.add('milk')}, then {example.show()}"}, accept=SSE)
        events = [parse(frame) for frame in answer.body.split("\n\n") if frame]
        assert events[-1]["event"] == ("failed" if fails else "finished")
        for each in events:
            check({"$ref": "#/components/schemas/TurnEvent"}, each)
            [fitting] = [
                schema
                for name, schema in DOCUMENT["components"]["schemas"].items()
                if name.endswith("Event") and "properties" in schema and validator(schema).is_valid(each)
            ]
            assert each.keys() <= fitting["properties"].keys()

    def test_the_example_of_a_stream_is_one(self) -> None:
        """It has the events of a whole turn."""
        content = OPERATIONS["sendMessage"][2]["responses"]["200"]["content"][SSE]
        events = [parse(frame) for frame in content["example"].split("\n\n") if frame]
        check(content["schema"]["contentSchema"], events)
        assert [each["event"] for each in events] == ["accepted", "text", "finished"]


def parse(frame: str) -> Described:
    """Return an event with its data parsed."""
    found: Described = dict(line.split(": ", 1) for line in frame.split("\n"))
    return found | {"data": json.loads(found["data"])} | ({"retry": int(found["retry"])} if "retry" in found else {})


class TestGenerators:
    """A generated client asks for nothing that may be left out, and promises nothing that may be missing."""

    def test_no_member_has_a_default_of_null(self) -> None:
        """A generator takes a member with a default for one that is always there."""
        assert [each for each in schemas_in(DOCUMENT) if each.get("default", 0) is None] == []

    def test_no_member_of_a_body_has_a_default(self) -> None:
        """Only parameters have some."""
        assert [each for each in schemas_in(DOCUMENT["components"]["schemas"]) if "default" in each] == []

    def test_every_member_of_an_answer_is_required(self) -> None:
        """But for those of problems that are not always there, and a stream's waiting time."""
        for name, schema in DOCUMENT["components"]["schemas"].items():
            if "properties" in schema and not name.endswith(("Problem", "Request", "Props", "Message")):
                assert set(schema["required"]) | {"retry"} >= schema["properties"].keys(), name

    def test_the_version_is_the_project_s(self) -> None:
        """The description, the package and pyproject.toml name one."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert DOCUMENT["info"]["version"] == VERSION == project["version"]
