"""`make chat` in a real terminal, against a real `make dev` whose model the test slows down."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dev import client, standin_model
from dev.standin_model.client import StandIn
from dev.standin_model.domain import domain
from tests.test_dev import ROOT, Development, development, make

if TYPE_CHECKING:
    from tests.privacy import LogSearch

ADD, ADDED = domain.examples.add, domain.examples.added
SECONDS = 60
STYLES = re.compile(r"\x1b\[\d*m")
PROMPT = "> "
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
CHAT = [sys.executable, "-m", "dev.chat"]


@dataclass
class Terminal:
    """Hold a program with a terminal of its own."""

    process: subprocess.Popen[bytes]
    screen: int
    shown: str = ""
    read: int = field(default=0)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.screen, keys.encode())

    def until(self, pattern: str) -> str:
        """Read until the pattern is shown after what was read before, and return the text up to its end."""
        end = time.monotonic() + SECONDS
        while not (found := re.compile(pattern, re.DOTALL).search(self.shown, self.read)):
            assert select.select([self.screen], [], [], end - time.monotonic())[0], self.shown
            with contextlib.suppress(OSError):  # Linux says so when the program has ended
                if more := os.read(self.screen, 65536):
                    self.shown += more.decode()
                    continue
            pytest.fail(f"the program ended after {self.shown!r}")
        text, self.read = self.shown[self.read : found.end()], found.end()
        return text

    def ended(self) -> int:
        """Read the rest, and return the exit code."""
        with contextlib.suppress(OSError):
            while more := os.read(self.screen, 65536):
                self.shown += more.decode()
        return self.process.wait(SECONDS)


@contextlib.contextmanager
def terminal(command: list[str], environment: dict[str, str]) -> Iterator[Terminal]:
    """Run the command in a new session whose terminal is ours."""
    screen, end = pty.openpty()
    process = subprocess.Popen(  # noqa: S603  (our own command)
        command,
        cwd=ROOT,
        env=environment,
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(end)
    try:
        yield Terminal(process, screen)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(screen)


@pytest.fixture(scope="module")
def model() -> Iterator[StandIn]:
    """Run the model that the server calls."""
    with standin_model.running() as running:
        yield running


@pytest.fixture(scope="module")
def server(model: StandIn, log_search: "LogSearch") -> Iterator[Development]:
    """Run one `make dev` with that model."""
    real = {"OPENAI_API_KEY": "any", "OPENAI_BASE_URL": model.base_url, "MODEL": "stand-in", "NO_PROXY": "*"}
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name, development(Path(name), **real) as running:
        yield running
        log_search.add_output((Path(name) / "server.log").read_text())


@pytest.fixture(autouse=True)
def unslowed(model: StandIn) -> Iterator[None]:
    """Let each test begin with a model without faults."""
    yield
    model.reset()


@pytest.fixture
def chat(server: Development) -> Callable[..., AbstractContextManager[Terminal]]:
    """Give a function that runs the chat in a terminal, with further variables."""

    def run(*arguments: str, **variables: str) -> AbstractContextManager[Terminal]:
        environment = server.environment | {"TERM": "xterm-256color"} | variables
        environment.pop("NO_COLOR", None) if "NO_COLOR" not in variables else None
        return terminal([*CHAT, *arguments], environment)

    return run


Chat = Callable[..., AbstractContextManager[Terminal]]


def texts(server: Development) -> list[str]:
    """Return the texts of the developer's things, in order of id."""
    identity = client.token(server.url)
    headers = {"Authorization": f"Bearer {identity['token']}"}
    _, page = client.call(server.url, f"/api/{identity['user_id']}/tasks", headers=headers)
    return [task["title"] for task in sorted(page["tasks"], key=lambda task: task["id"])]


def test_a_turn_is_shown_as_it_happens(chat: Chat, model: StandIn) -> None:
    """The call comes in words before the model writes, and the first words before it has written all of them."""
    model.fault("pause", after_calls=1, pieces=1)
    with chat() as person:
        person.until(PROMPT)
        person.type(f"{ADD}\n")
        person.until(rf"Add task: {ADDED}")
        model.waiting(at_least=1)
        person.until("Added")
        assert ADDED not in person.shown[person.read :]
        model.release()
        person.until(rf"{ADDED} \(\d+\)\..*\d\.\d s.*{PROMPT}")
        person.type(CTRL_D)
        assert person.ended() == 0
        assert "make chat CONVERSATION=" in person.shown


def test_the_seconds_count_until_the_first_word(chat: Chat, model: StandIn) -> None:
    """A person sees that the model is at work."""
    model.fault("hang")
    with chat() as person:
        person.until(PROMPT)
        person.type(f"{ADD}\n")
        person.until(r"1 s .*2 s ")
        model.release()
        person.until(PROMPT)


def test_ctrl_c_leaves_a_turn_that_enter_picks_up(chat: Chat, model: StandIn, server: Development) -> None:
    """The turn goes on, and the same key shows all of it. It happens once."""
    before = len(texts(server))
    model.fault("hang")
    with chat() as person:
        person.until(PROMPT)
        person.type(f"{ADD}\n")
        model.waiting(at_least=1)
        person.type(CTRL_C)
        person.until(f"You left the turn; it goes on.*{PROMPT}")
        model.release()
        person.type("\n")
        person.until(rf"Add task: {ADDED}.*Added {ADDED}.*{PROMPT}")
        person.type(CTRL_D)
        assert person.ended() == 0
    assert texts(server)[before:] == [ADDED]


def test_a_running_turn_says_when_to_try_again(chat: Chat, model: StandIn, server: Development) -> None:
    """Another message gets a 409 meanwhile, and Enter sends it again."""
    before = len(texts(server))
    model.fault("hang")
    with chat() as person:
        person.until(PROMPT)
        person.type(f"{ADD}\n")
        model.waiting(at_least=1)
        person.type(CTRL_C)
        person.until(PROMPT)
        person.type("Add second\n")
        person.until(rf"409 .*Press Enter in \d+ s to try again.*{PROMPT}")
        model.release()
        while "Added second" not in person.shown:
            person.type("\n")
            person.until(PROMPT)
        person.type(CTRL_D)
        assert person.ended() == 0
    assert sorted(texts(server)[before:]) == [ADDED, "second"]


def test_a_failed_turn_can_be_sent_again(chat: Chat, model: StandIn, server: Development) -> None:
    """The reason comes in a line."""
    before = len(texts(server))
    model.fault("bad_gateway", after_calls=1, times=20)
    with chat() as person:
        person.until(PROMPT)
        person.type(f"{ADD}\n")
        person.until(rf"502 .*Press Enter.*{PROMPT}")
        model.reset()
        person.type("\n")
        person.until(rf"Added {ADDED}.*{PROMPT}")
    assert texts(server)[before:] == [ADDED]


def test_ctrl_c_at_the_prompt_ends(chat: Chat) -> None:
    """The exit code is that of an interrupted program."""
    with chat() as person:
        person.until(PROMPT)
        person.type(CTRL_C)
        assert person.ended() == 130


def test_history_is_kept_with_the_data(chat: Chat, server: Development) -> None:
    """The next prompt recalls the last message. Only its owner may read the file."""
    with chat() as first:
        first.until(PROMPT)
        first.type("Add bread\n")
        first.until(rf"Added bread.*{PROMPT}")
        first.type(CTRL_D)
        assert first.ended() == 0
    with chat() as second:
        second.until(PROMPT)
        second.type(f"{UP}\n")
        second.until(rf"Added bread.*{PROMPT}")
    kept = Path(server.environment["TASKCHAT_DEV_DIR"]) / "chat_history"
    assert (stat.S_IMODE(kept.stat().st_mode), "Add bread" in kept.read_text()) == (0o600, True)


def test_a_conversation_goes_on(chat: Chat) -> None:
    """Its id is an argument."""
    with chat() as first:
        first.until(PROMPT)
        first.type("Add soap\n")
        first.until(rf"Added soap.*{PROMPT}")
        first.type(CTRL_D)
        assert first.ended() == 0
    [conversation] = re.findall(r"CONVERSATION=(\S+)", first.shown)
    with chat("--conversation", conversation) as second:
        second.until(PROMPT)
        second.type("what did I just say?\n")
        second.until(rf"Add soap.*{PROMPT}")


@pytest.mark.parametrize(("variables", "styled"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_styles_can_be_switched_off(chat: Chat, variables: dict[str, str], styled: bool) -> None:
    """The variable NO_COLOR forbids them, and so does a terminal without any."""
    with chat(**variables) as person:
        person.until(PROMPT)
        person.type(f"{ADD}\n")
        person.until(rf"Added {ADDED}.*{PROMPT}")
        person.type(CTRL_D)
        assert person.ended() == 0
    assert bool(STYLES.search(person.shown)) is styled


def test_make_runs_the_prompt(server: Development) -> None:
    """It passes keys and exit code on."""
    command = ["make", "--assume-old=.venv/.installed", "chat"]
    with terminal(command, server.environment | {"TERM": "xterm"}) as person:
        person.until(PROMPT)
        person.type(f"{ADD}\n")
        person.until(rf"Added {ADDED}.*{PROMPT}")
        person.type(CTRL_D)
        assert person.ended() == 0


def test_a_message_in_a_terminal_streams_too(chat: Chat) -> None:
    """There is no prompt."""
    with chat(MESSAGE=ADD) as person:
        person.until(rf"Add task: {ADDED}.*Added {ADDED}.*make chat CONVERSATION=")
        assert person.ended() == 0
    assert PROMPT not in person.shown


@pytest.mark.parametrize(("lines", "code"), [(["Add tea", "Add rice"], 0), (["Add tea", "x" * 5000, "Add rice"], 1)])
def test_a_pipe_has_a_turn_for_each_line(server: Development, lines: list[str], code: int) -> None:
    """One conversation gets all of them. The exit code says whether one failed."""
    with make("chat", environment=server.environment, stdin=subprocess.PIPE) as running:
        printed, errors = running.communicate("\n".join(lines))
    assert re.findall(r"^Added (\w+) \(\d+\)\.$", printed, re.MULTILINE) == ["tea", "rice"]
    assert PROMPT not in printed
    assert len(set(re.findall(r"CONVERSATION=(\S+)", printed))) == 1
    assert (running.returncode != 0, errors.startswith("422 ")) == (code != 0, code != 0)


def test_an_empty_pipe_says_what_is_missing(server: Development) -> None:
    """The exit code is 2, as for other wrong uses."""
    ran = subprocess.run(  # noqa: S603  (our own command)
        CHAT, cwd=ROOT, env=server.environment, input="", capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("Give a message: ")
