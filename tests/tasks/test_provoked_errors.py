"""A person provokes each error as docs/stand-in-model.md says, and gets what it says."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from chat.app import app, handler
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.gateway import Response, event, invoke
from tests.conftest import Person, reset_processes, serving
from tests.streams import Client
from tests.test_standin_model import DOCUMENT

SECTION: Final = DOCUMENT.split("\n## Errors that a person can meet\n")[1].split("\n## ")[0]
ASKED, STREAMED, DONE = (
    [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    for table in re.findall(r"(?:^\|.*\n)+", SECTION, re.MULTILINE)
)


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Return Postgres's own URL: the pooler changes no answer here."""
    return server.app_url


def shown(status: int, body: Any) -> str:
    """Return what `make chat` prints of an answer."""
    if "response" in body:
        return str(body["response"])
    fields = "; ".join(f"{fault['field']}: {fault['message']}" for fault in body.get("fields", ()))
    return " ".join(filter(None, (f"{status} {body['title']}", body.get("detail"), fields)))


def received(answer: Response) -> str:
    """Return what `curl` gets of an answer, in the words of the document."""
    slug = answer.json.get("type", "").rpartition(":")[2]
    waiting = ", `Retry-After`" if "retry-after" in answer.headers else ""
    return f"{answer.status}{slug and f' `{slug}`'}{waiting}"


@pytest.mark.parametrize(("message", "status", "text", "again"), ASKED)
def test_a_message_provokes_its_error(
    message: str, status: str, text: str, again: str, alice: Person, standin: StandIn
) -> None:
    """The same key then has the outcome of the last column."""
    answer = alice.say(message, key="k", seconds=2.5 if "504" in status else 30)
    assert (received(answer), shown(answer.status, answer.json)) == (status, text)
    assert str(alice.say(message, key="k").status) == again


@pytest.mark.parametrize(("message", "ending"), STREAMED)
def test_a_message_provokes_the_end_of_its_stream(
    message: str, ending: str, environment: None, issuer: Issuer, standin: StandIn
) -> None:
    """The same key then ends with `finished`."""
    with serving(app) as url:
        client = Client(url, Person.new(issuer))
        with client.say(message, "k") as stream:
            name, data = stream.all()[-1]
        text = f": {data['title']} {data['detail']}" if name == "failed" else ""
        assert f"`{name}`{text}" == ending
        with client.say(message, "k") as stream:
            assert stream.all()[-1][0] == "finished"


def write_too_long(alice: Person) -> Response:
    return alice.say("x" * 4_001)


def name_no_conversation(alice: Person) -> Response:
    return alice.say("hello", "00000000-0000-4000-8000-000000000000")


def send_no_token(alice: Person) -> Response:
    return alice.post({"message": "hello"}, authorization="")


def name_another_user(alice: Person) -> Response:
    sent = {"authorization": f"Bearer {alice.token}", "content-type": "application/json"}
    return invoke(handler, event("POST", "/api/bob/chat", headers=sent, body=b'{"message": "hello"}'))


def send_too_much(alice: Person) -> Response:
    return alice.post(b'{"message": "%s"}' % (b"x" * 40_000))


def send_plain_text(alice: Person) -> Response:
    return alice.post({"message": "hello"}, content_type="text/plain")


def send_no_json(alice: Person) -> Response:
    return alice.post(b"hello")


def reuse_a_key(alice: Person) -> Response:
    alice.say("hello", key="k")
    return alice.say("hello again", key="k")


ACTIONS: Final[dict[str, Callable[[Person], Response]]] = {
    "invalid-input": write_too_long,
    "not-found": name_no_conversation,
    "unauthenticated": send_no_token,
    "forbidden": name_another_user,
    "body-too-large": send_too_much,
    "unsupported-media-type": send_plain_text,
    "not-json": send_no_json,
    "idempotency-key-reused": reuse_a_key,
}
"""The actions that need no more than one person. The other rows have tests of their own."""


def row_of(slug: str) -> list[str]:
    """Return the status and the text of a row."""
    [found] = [row[1:] for row in DONE if f"`{slug}`" in row[1]]
    return found


@pytest.mark.parametrize("slug", ACTIONS)
def test_an_action_provokes_its_error(slug: str, alice: Person, standin: StandIn) -> None:
    """Status, type and text are those of the document. `make chat` cannot do all of it."""
    answer = ACTIONS[slug](alice)
    status, text = row_of(slug)
    assert received(answer) == status
    assert text in ("", shown(answer.status, answer.json))


def test_a_second_message_meets_the_running_turn(environment: None, issuer: Issuer, standin: StandIn) -> None:
    """It is refused until the first is done."""
    with serving(app) as url:
        client = Client(url, Person.new(issuer))
        with client.say("stand-in: slow 20 s", "one") as running:
            _, accepted = running.until("accepted")
            second = client.ask("hello", "two", accepted["conversation_id"])
            assert standin.waiting(1) == 1
            standin.release()
            assert running.all()[-1][0] == "finished"
    got = f"{second.status} `turn-in-progress`, `Retry-After`" if second.header("retry-after") else ""
    assert [got, shown(second.status, second.json)] == row_of("turn-in-progress")


def test_a_second_message_meets_the_limit(alice: Person, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of the environment."""
    with changed(monkeypatch, TURN_BURST="1", TURNS_PER_MINUTE="1"):
        alice.say("hello")
        answer = alice.say("hello")
    assert [received(answer), shown(answer.status, answer.json)] == row_of("too-many-requests")


def test_a_message_meets_no_database(
    alice: Person, standin: StandIn, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """No server answers at the address."""
    away = re.sub(r"(@[^:/]+):\d+", r"\1:1", database_url)
    with changed(monkeypatch, DATABASE_URL=away):
        answer = alice.say("hello")
    assert [received(answer), shown(answer.status, answer.json)] == row_of("database-unavailable")


def test_each_row_has_its_test() -> None:
    """A row that is added to the document needs one."""
    own = {"turn-in-progress", "too-many-requests", "database-unavailable"}
    assert {found for row in DONE for found in re.findall("[0-9] `([a-z-]+)`", row[1])} == ACTIONS.keys() | own


@contextmanager
def changed(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Iterator[None]:
    """Run a process with these environment variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    reset_processes()
    yield
