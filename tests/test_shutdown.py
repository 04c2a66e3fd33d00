"""A server or an environment that is told to end in the middle of a turn.

Promises: the local server lets a turn end that has little left to do; one that takes longer is answered with 503, what
it did, and a time to come back, and its key goes on at once where the server runs again. A second signal changes
nothing, and no process is left. On Lambda a SIGTERM ends the process where it is, as SIGKILL does: the same key goes on
once the lease has run out.
"""

import http.client
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest

from dev import client
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from tests import db_assertions
from tests.crash_points import Trap
from tests.db_assertions import Rows
from tests.environments import Fleet
from tests.test_crash import SEVERAL, Story
from tests.test_dev import GONE_SECONDS, Development, development

if TYPE_CHECKING:
    from tests.privacy import LogSearch

MESSAGE = "Add buy milk, then finish the milk"
TOOLS = ["add_task", "list_tasks", "complete_task"]
PATIENCE = 40


@dataclass(frozen=True)
class Answer:
    """What came over the wire."""

    status: int
    headers: http.client.HTTPMessage
    json: Any


def say(running: Development, message: str, key: str) -> Answer:
    """Take one turn over HTTP."""
    caller = client.token(running.url)
    headers = {"Authorization": f"Bearer {caller['token']}", "Content-Type": "application/json", "Idempotency-Key": key}
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=PATIENCE)
    try:
        connection.request("POST", f"/api/{caller['user_id']}/chat", json.dumps({"message": message}), headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, json.loads(response.read()))
    finally:
        connection.close()


def processes_of(running: Development) -> list[psutil.Process]:
    """Return make and all that runs below it."""
    make = psutil.Process(running.make.pid)
    return [make, *make.children(recursive=True)]


def model_of(running: Development) -> StandIn:
    """Return the stand-in model that its server was told to speak to."""
    (url, *_) = {url for process in processes_of(running) if (url := process.environ().get("OPENAI_BASE_URL"))}
    return StandIn(url)


@pytest.fixture
def directory(log_search: "LogSearch") -> Iterator[Path]:
    """A directory for its data, outside pytest's own."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name:
        yield Path(name)
        log_search.add_output((Path(name) / "server.log").read_text())


def ask_and_hang(running: Development, pool: ThreadPoolExecutor) -> "Future[Answer]":
    """Begin a turn whose model hangs after the first call, and return when it does."""
    model = model_of(running)
    model.fault("hang", match=MESSAGE, after_calls=1, seconds=PATIENCE)
    asked = pool.submit(say, running, MESSAGE, "key")
    assert model.waiting(at_least=1) == 1
    return asked


class TestTheLocalServer:
    """`make dev`, stopped while a turn runs."""

    @pytest.mark.parametrize(
        ("to_all", "signals"),
        [
            pytest.param(True, [signal.SIGINT] * 2, id="ctrl-c twice"),
            pytest.param(False, [signal.SIGTERM], id="terminated"),
        ],
    )
    def test_a_turn_that_takes_long_is_told_so_and_goes_on_later(
        self, directory: Path, to_all: bool, signals: list[signal.Signals]
    ) -> None:
        """503 with what was done; nothing is left running; started again, it does the rest at once."""
        with development(directory) as running, ThreadPoolExecutor(1) as pool:
            everything, asked = processes_of(running), ask_and_hang(running, pool)
            for number in signals:
                (os.killpg if to_all else os.kill)(running.make.pid, number)
            cut = asked.result(PATIENCE)
            assert psutil.wait_procs(everything, timeout=GONE_SECONDS)[1] == []
        assert (cut.status, cut.json["type"]) == (503, "urn:taskchat:problem:unavailable")
        assert int(cut.headers["retry-after"]) >= 1
        assert [call["tool"] for call in cut.json["tool_calls"]] == TOOLS[:1]
        with development(directory) as running:
            done = say(running, MESSAGE, "key")
            listed = say(running, "Show all tasks", "another")
        assert (done.status, listed.status) == (200, 200), (done.json, listed.json)
        assert [call["tool"] for call in done.json["tool_calls"]] == TOOLS
        assert done.json["tool_calls"][:1] == cut.json["tool_calls"]
        tasks = listed.json["tool_calls"][0]["result"]["tasks"]
        assert [(task["title"], task["completed"]) for task in tasks] == [("buy milk", True)]

    def test_a_turn_that_is_nearly_over_is_waited_for(self, directory: Path) -> None:
        """It is answered as if nothing had happened."""
        with development(directory) as running, ThreadPoolExecutor(1) as pool:
            model, asked = model_of(running), ask_and_hang(running, pool)
            os.kill(running.make.pid, signal.SIGTERM)
            model.release()
            done = asked.result(PATIENCE)
        assert done.status == 200, done.json
        assert [call["tool"] for call in done.json["tool_calls"]] == TOOLS


class TestAnEnvironment:
    """A process on Lambda that gets SIGTERM in the middle of a turn."""

    @pytest.fixture(autouse=True)
    def watched(self, rows: Rows) -> Iterator[None]:
        """The database notes every effect by itself."""
        with db_assertions.watched(rows):
            yield

    @pytest.mark.parametrize(
        ("at", "on"),
        [
            (1, "model: sent"),
            (2, "before INSERT INTO task"),
            (3, "before commit"),
            (3, "after commit"),
            (2, "model: read"),
            (1, "answer: ready"),
        ],
    )
    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    def test_ends_and_a_retry_does_the_rest(self, at: int, on: str, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        """Refused while the lease holds; after it, all is done once."""
        story = Story(SEVERAL, fleet, rows, issuer)
        other = fleet.start()
        story.prepare(other)
        assert story.attempt(Trap(signal.SIGTERM, at, on)).trapped
        story.check_refused_while_leased(other)
        story.check_done(other)
