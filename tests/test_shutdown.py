"""A server or an environment gets a signal to end in the middle of a turn.

Promises: the local server lets a turn end that is nearly done. A longer turn gets a 503 with its calls and Retry-After,
and its key resumes it as soon as the server runs again. A second signal changes nothing, and no process is left. On
Lambda a SIGTERM ends the process at once, as SIGKILL does: the same key resumes the turn when the lease has run out.
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
from tests.domain import example
from tests.environments import Fleet
from tests.test_crash import SEVERAL, Trial
from tests.test_dev import GONE_SECONDS, Development, development

if TYPE_CHECKING:
    from tests.privacy import LogSearch

MESSAGE = example.add("buy milk").then(example.change("buy milk"))
PATIENCE = 40


@dataclass(frozen=True)
class HttpAnswer:
    """Hold an answer over HTTP."""

    status: int
    headers: http.client.HTTPMessage
    json: Any


def say(running: Development, message: str, key: str) -> HttpAnswer:
    """Take one turn over HTTP."""
    caller = client.token(running.url)
    headers = {"Authorization": f"Bearer {caller['token']}", "Content-Type": "application/json", "Idempotency-Key": key}
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=PATIENCE)
    try:
        connection.request("POST", f"/api/{caller['user_id']}/chat", json.dumps({"message": message}), headers)
        response = connection.getresponse()
        return HttpAnswer(response.status, response.headers, json.loads(response.read()))
    finally:
        connection.close()


def processes_of(running: Development) -> list[psutil.Process]:
    """Return make and all processes below it."""
    make = psutil.Process(running.make.pid)
    return [make, *make.children(recursive=True)]


def model_of(running: Development) -> StandIn:
    """Return the stand-in model of this server."""
    (url, *_) = {url for process in processes_of(running) if (url := process.environ().get("OPENAI_BASE_URL"))}
    return StandIn(url)


@pytest.fixture
def directory(log_search: "LogSearch") -> Iterator[Path]:
    """Make a directory for the server's data, and search its log afterwards."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name:
        yield Path(name)
        log_search.add_output((Path(name) / "server.log").read_text())


def ask_and_hang(running: Development, pool: ThreadPoolExecutor) -> "Future[HttpAnswer]":
    """Start a turn whose model hangs after the first call, and return when it hangs."""
    model = model_of(running)
    model.fault("hang", match=MESSAGE, after_calls=1, seconds=PATIENCE)
    asked = pool.submit(say, running, MESSAGE, "key")
    assert model.waiting(at_least=1) == 1
    return asked


class TestLocalServer:
    """`make dev` stops while a turn runs."""

    @pytest.mark.parametrize(
        ("to_all", "signals"),
        [
            pytest.param(True, [signal.SIGINT] * 2, id="ctrl-c twice"),
            pytest.param(False, [signal.SIGTERM], id="terminated"),
        ],
    )
    def test_a_long_turn_gets_a_503_and_resumes_later(
        self, directory: Path, to_all: bool, signals: list[signal.Signals]
    ) -> None:
        """The 503 has the calls made, no process is left, and the next server does the rest at once."""
        with development(directory) as running, ThreadPoolExecutor(1) as pool:
            everything, asked = processes_of(running), ask_and_hang(running, pool)
            for number in signals:
                (os.killpg if to_all else os.kill)(running.make.pid, number)
            cut = asked.result(PATIENCE)
            assert psutil.wait_procs(everything, timeout=GONE_SECONDS)[1] == []
        assert (cut.status, cut.json["type"]) == (503, "urn:taskchat:problem:unavailable")
        assert int(cut.headers["retry-after"]) >= 1
        assert [call["tool"] for call in cut.json["tool_calls"]] == MESSAGE.tools[:1]
        with development(directory) as running:
            done = say(running, MESSAGE, "key")
            model_of(running).fault("call", calls=[example.call_list()], match="hello")
            listed = say(running, "hello", "another")
        assert (done.status, listed.status) == (200, 200), (done.json, listed.json)
        assert [call["tool"] for call in done.json["tool_calls"]] == MESSAGE.tools
        assert done.json["tool_calls"][:1] == cut.json["tool_calls"]
        rows = [(row[example.text], row[example.state]) for row in listed.json["tool_calls"][0]["result"][example.page]]
        assert rows == [example.row("buy milk", changed=True)]

    def test_the_server_waits_for_a_turn_that_is_nearly_done(self, directory: Path) -> None:
        """The client gets an ordinary answer."""
        with development(directory) as running, ThreadPoolExecutor(1) as pool:
            model, asked = model_of(running), ask_and_hang(running, pool)
            os.kill(running.make.pid, signal.SIGTERM)
            model.release()
            done = asked.result(PATIENCE)
        assert done.status == 200, done.json
        assert [call["tool"] for call in done.json["tool_calls"]] == MESSAGE.tools


class TestEnvironment:
    """A process on Lambda gets SIGTERM in the middle of a turn."""

    @pytest.fixture(autouse=True)
    def watched(self, rows: Rows) -> Iterator[None]:
        """Have Postgres record every effect by itself."""
        with db_assertions.watched(rows):
            yield

    @pytest.mark.parametrize(
        ("at", "on"),
        [
            (1, "model: sent"),
            (2, f"before INSERT INTO {example.table}"),
            (3, "before commit"),
            (3, "after commit"),
            (2, "model: read"),
            (1, "answer: ready"),
        ],
    )
    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    def test_a_terminated_turn_is_finished_by_a_retry(
        self, at: int, on: str, fleet: Fleet, rows: Rows, issuer: Issuer
    ) -> None:
        """The key gets a 409 while the lease holds. After it, everything is done once."""
        trial = Trial(SEVERAL, fleet, rows, issuer)
        other = fleet.start()
        trial.prepare(other)
        assert trial.attempt(Trap(signal.SIGTERM, at, on)).trapped
        trial.check_refused_while_leased(other)
        trial.check_done(other)
