"""A migration only adds: the code of the release before it goes on to serve with the new schema.

While a deployment is under way, environments of both releases answer at the same time.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from taskchat.database.schema import NEEDED
from testing.gateway import Handler, invoke
from tests.conftest import ROOT, Person
from tests.domain import example
from tests.privacy import LogSearch
from tests.test_mcp_endpoint import McpClient

Rows = psycopg.Connection[dict[str, Any]]
BEFORE = "d39f2659fbe9"
"""The commit before the newest migrations that no deployment has yet. Move it on with each release."""


def _git(*arguments: str) -> bytes:
    """Return the output of a git command about this repository."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout  # noqa: S603  (constants)


def revision_of_earlier() -> str:
    """Return the revision of the schema that the earlier commit was written for."""
    files = _git("ls-tree", "--name-only", BEFORE, "migrations/versions/").decode().split()
    return max(Path(file).name for file in files).partition("_")[0]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Take what ships out of the earlier commit."""
    archived = _git("archive", BEFORE, "functions", "shared")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(archived)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@contextmanager
def serving(earlier: Path, package: str, log_search: LogSearch) -> Iterator[Handler]:
    """Run a function of the earlier release in a process, and give its handler."""
    path = f"{earlier / 'shared'}{os.pathsep}{earlier / 'functions'}"
    log = tempfile.TemporaryFile("w+")  # nobody reads a pipe while it runs, and a full pipe would stop it
    process = subprocess.Popen(  # noqa: S603  (a module of these tests)
        [sys.executable, "-m", "tests.earlier_release", package],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    sent, answers = process.stdin, process.stdout
    assert Path(answers.readline()).is_relative_to(earlier)

    def handle(event: dict[str, Any], _context: Any) -> dict[str, Any]:
        sent.write(json.dumps(event) + "\n")
        sent.flush()
        answer: dict[str, Any] = json.loads(answers.readline())
        return answer

    try:
        yield handle
    finally:
        process.communicate(timeout=30)
        with log:
            log.seek(0)
            log_search.add_output(log.read().replace("taskchat.audit/", "earlier.audit/"))  # it had fewer fields


@pytest.fixture
def old(environment: None, earlier: Path, log_search: LogSearch) -> Iterator[dict[str, Handler]]:
    """Run both functions of the earlier release."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(serving(earlier, name, log_search)) for name in ("chat", "mcp_tools")}


def test_the_earlier_code_knows_an_older_schema(earlier: Path) -> None:
    """There is a migration that it was written without."""
    assert revision_of_earlier() < NEEDED


class TestBothReleases:
    """Environments of both serve the same person, conversation and things."""

    def test_turns_take_effect_once(self, old: dict[str, Handler], alice: Person, rows: Rows) -> None:
        """Each release sees the other's turns, replays them, and goes on in the same conversation."""
        first = invoke(old["chat"], alice.request({"message": example.add("milk")}, key="a"))
        assert first.status == 200, first.body
        conversation = first.json["conversation_id"]
        again = alice.post({"message": example.add("milk")}, key="a")
        assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
        second = alice.say(example.add("bread"), conversation, key="b")
        replayed = invoke(
            old["chat"], alice.request({"message": example.add("bread"), "conversation_id": conversation}, key="b")
        )
        assert replayed.json == second.json
        for message in (example.change("milk"), example.rename("bread", "rolls"), example.show()):
            answer = invoke(old["chat"], alice.request({"message": message, "conversation_id": conversation}))
            assert (answer.status, {call["outcome"] for call in answer.json["tool_calls"]}) == (200, {"ok"})
        assert example.rows_of(rows, alice.id) == [example.row("milk", changed=True), example.row("rolls")]
        gone = invoke(old["chat"], alice.request({"message": example.delete("rolls"), "conversation_id": conversation}))
        assert gone.status == 200
        assert example.rows_of(rows, alice.id) == [example.row("milk", changed=True)]

    def test_mcp_clients_call_every_tool(self, old: dict[str, Handler], alice: Person, rows: Rows) -> None:
        """On things that either release has stored."""
        client = McpClient(alice.mcp_token)
        client.add("milk")
        (thing,) = example.ids_of(rows, alice.id)
        for call in (
            example.call_add("bread"),
            example.call_list(),
            example.call_change(thing),
            example.call_rename(thing, "cream"),
        ):
            answer = client.request("tools/call", handler=old["mcp_tools"], **call)
            assert (answer.status, answer.json["result"]["isError"]) == (200, False), answer.body
        assert sorted(client.listed()) == ["bread", "cream"]
        answer = client.request("tools/call", handler=old["mcp_tools"], **example.call_delete(thing))
        assert not answer.json["result"]["isError"]
        assert client.listed() == ["bread"]
