"""docs/operations.md shows the commands of an operator with their output: this file provokes it on `make dev`.

Ids, times and lengths of bars differ from run to run, so they are compared as placeholders.
"""

import json
import os
import re
import shlex
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from dev import processes
from dev.standin_model.client import StandIn
from tests.conftest import ROOT
from tests.domain import example
from tests.test_dev import Development, development

if TYPE_CHECKING:
    from tests.privacy import LogSearch

PAGE = ROOT / "docs" / "operations.md"
Answer = dict[str, Any]


UPDATE = "UPDATE_TRANSCRIPTS" in os.environ
"""Write the commands' output into the page, instead of comparing it."""

VARYING = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "ID",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+00:00": "TIME",
    r"\bcall_[0-9a-f]+": "CALL",
    r"\b[A-Za-z0-9]{32}\b": "PERSON",
    r"--cursor \S+": "CURSOR",
    r"[#.]{10,}": "BAR",
    r"\b\d+\.\d+\b|\d[\d,]*(?=( ms| s |%| tokens| cached| out))": "N",
    r"Makefile:\d+": "Makefile:N",
    r"-{3,}| {2,}": " ",
}
"""What differs from run to run, and its placeholder."""


@dataclass
class Stack:
    """The local stack, and its developer."""

    development: Development
    log: Path
    identity: Answer

    def wait_for_lines(self, count: int) -> None:
        """Wait until the log has so many audit lines: `make dev` copies the server's output."""
        for _ in processes.attempts(10):
            if self.log.read_text().count('"taskchat.audit/1"') >= count:
                return
        raise AssertionError(self.log.read_text())

    def lose_last_audit_line(self) -> None:
        """Remove the line, as if the process had been killed between the commit and the line."""
        lines = self.log.read_text().splitlines(keepends=True)
        last = max(number for number, line in enumerate(lines) if '"taskchat.audit/1"' in line)
        self.log.write_text("".join(lines[:last] + lines[last + 1 :]))

    def say(self, message: str, key: str | None = None) -> Answer:
        """Take a turn, and return the answer or the problem."""
        request = urllib.request.Request(  # noqa: S310  (http, on this machine)
            f"{self.development.url}/api/{self.identity['user_id']}/chat",
            json.dumps({"message": message}).encode(),
            {
                "Authorization": f"Bearer {self.identity['token']}",
                "Content-Type": "application/json",
                "Idempotency-Key": key or uuid4().hex,
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                answer: Answer = json.load(response)
        except urllib.error.HTTPError as error:
            answer = json.load(error)
        return answer

    def operate(self, command: str) -> str:
        """Run a command of the page, and return what it prints on both streams."""
        environment = self.development.environment | {"COLUMNS": "100"}
        words = shlex.split(command)
        done = subprocess.run(  # noqa: S603
            [words[0], "--no-print-directory", "--assume-old=.venv/.installed", *words[1:]],
            cwd=ROOT,
            env={name: value for name, value in environment.items() if name != "AUDIT_DATABASE_URL"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        return done.stdout


class Walk:
    """Follows the page, section by section."""

    def __init__(self, stack: Stack, page: str, values: dict[str, str]) -> None:
        self._stack, self._page, self.values = stack, page, values
        self._followed = page

    def follow(self, section: str) -> None:
        """Run each command of the section's transcripts, and put its output in place of the page's."""
        before, _, rest = self._followed.partition(f"## {section}\n")
        assert rest, f"the page has no section {section!r}"
        body, mark, after = rest.partition("\n## ")
        body = re.sub(r"```console\n(.*?)```", self._run, body, flags=re.DOTALL)
        self._followed = f"{before}## {section}\n{body}{mark}{after}"

    def _run(self, block: re.Match[str]) -> str:
        commands = [line.removeprefix("$ ") for line in block[1].splitlines() if line.startswith("$ ")]
        transcript = [f"$ {command}\n{self._stack.operate(self._filled(command))}" for command in commands]
        return f"```console\n{''.join(transcript)}```"

    def _filled(self, command: str) -> str:
        for name, value in self.values.items():
            command = command.replace(f"${name}", value)
        return command

    def compare(self) -> None:
        """Compare the page with the transcripts of this run."""
        if UPDATE:
            PAGE.write_text(self._followed)
        assert normalised(self._page) == normalised(self._followed) or UPDATE


def normalised(text: str) -> list[str]:
    """Return the lines, with placeholders for what varies."""
    for pattern, placeholder in VARYING.items():
        text = re.sub(pattern, placeholder, text)
    return [line.rstrip() for line in text.splitlines()]


@pytest.fixture(scope="module")
def stack(log_search: "LogSearch", running_model: StandIn) -> Iterator[Stack]:
    """Run one `make dev` with a stand-in model that the test can disturb, and search its output for persons' texts."""
    model = {"OPENAI_API_KEY": "stand-in", "OPENAI_BASE_URL": running_model.base_url, "MODEL": "stand-in"}
    with (
        tempfile.TemporaryDirectory(prefix="taskchat-test-") as name,
        development(Path(name), **model, NO_PROXY="*") as running,
    ):
        with urllib.request.urlopen(f"{running.url}/dev/token", timeout=60) as response:  # noqa: S310
            yield Stack(running, Path(name) / "log.jsonl", json.load(response))
        log_search.add_output((Path(name) / "server.log").read_text())


def test_the_walk_of_the_page_works(stack: Stack, standin: StandIn) -> None:
    """A deletion, a slow turn, a turn that goes on after a failure, and a record whose line is lost."""
    stack.say(example.add("milk", "flour").then(example.delete("milk")))
    stack.say(example.delete("flour"))
    stack.wait_for_lines(6)
    walk = Walk(stack, PAGE.read_text(), {"PERSON": stack.identity["user_id"]})
    walk.follow("Find one person's deletions of a day")

    standin.fault("hang", match="rice", seconds=1)
    walk.values["TURN"] = stack.say(example.add("rice"))["turn_id"]
    walk.follow("Draw a slow turn")

    standin.fault("server_error", match="bread", after_calls=1, times=9)
    assert stack.say(example.add("bread").then(example.show()), key="bread")["status"] == 502
    standin.reset()
    walk.values["TURN"] = stack.say(example.add("bread").then(example.show()), key="bread")["turn_id"]
    walk.follow("See a turn that was resumed")

    stack.lose_last_audit_line()
    walk.follow("Reconcile")
    walk.compare()
