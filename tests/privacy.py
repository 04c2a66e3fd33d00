"""Nothing secret and no word of a person is logged, in any test: a pytest plugin that reads all that the tests made
the program write, as CloudWatch would get it, and fails the run when it finds a person or a secret in there.

It knows a secret by its form or by name, and people's words from the database that they were kept in. Fixtures hand in
the latter, and what processes of their own wrote, through `watch`.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from psycopg.rows import scalar_row
from sqlmodel import SQLModel

ROOT: Final = Path(__file__).parent.parent

SHORTEST: Final = 8
"""Characters of a text that is looked for. Shorter ones ("milk") are found in any log by chance."""
LONGEST: Final = 24
"""Characters of its beginning and of its end that are enough to know a text by: a log may have cut it."""
LONGEST_ERROR: Final = 300
"""Characters of an internal error's end that are shown."""

FORMS: Final = {
    "a token": re.compile(r"eyJ[\w-]{10,}\.[\w-]{10,}"),
    "a bearer's credentials": re.compile(r"bearer\s+[\w.~+/-]{8,}", re.IGNORECASE),
    "an Authorization header": re.compile(r"authorization['\"]?\s*[:=,]", re.IGNORECASE),
    "a URL with a password": re.compile(r"\w+://[^\s:/@]+:[^\s@/]+@"),
    "an API key": re.compile(r"\bsk-[\w-]{8,}"),
    "a private key": re.compile("PRIVATE KEY-----"),
}
"""What secrets look like, whoever's they are."""

WORDS_OF_PEOPLE: Final = (
    "select content from message",
    "select title from conversation",
    "select tool from tool_call",
    "select value #>> '{}' from tool_call, jsonb_path_query(arguments::jsonb, 'strict $.**') value"
    " where jsonb_typeof(value) = 'string' and value #>> '{}' <> user_id",
)
"""The engine's columns that hold what somebody wrote, or could: a model may name a tool in a person's words. One's own
id is no such word. A result's other fields are numbers, times and the program's own words."""


def words_in_domain() -> Iterator[str]:
    """Yield the queries for the domain's columns of text, and for the fields of results that show them."""
    from taskchat.database.types import SafeText  # not above: what a plugin imports is imported before any test
    from tests.domain import example

    for column in SQLModel.metadata.tables[example.table].columns:
        if isinstance(column.type, SafeText) and column.name != "user_id":
            yield f"select {column.name} from {example.table}"  # noqa: S608  (the domain's own names)
            path = f"strict $.**.{column.name}"
            yield f"select value #>> '{{}}' from tool_call, jsonb_path_query(result::jsonb, '{path}') value"  # noqa: S608


@dataclass(frozen=True)
class Search:
    """How many lines were searched, for how much, and what was found."""

    lines: int
    texts: int
    secrets: int
    leaks: list[str]
    """In words: what stands in the lines that may not, and since which test."""


@dataclass
class Watch:
    """What was written, and what may not stand in it."""

    during: str = "collection"
    """The test that runs."""
    lines: dict[str, str] = field(default_factory=dict)
    """Each line with the test that it was first written in."""
    secrets: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def note(self, output: str) -> None:
        """Take lines of output."""
        for line in output.splitlines():
            self.lines.setdefault(line, self.during)

    def know_texts(self, texts: Iterable[str]) -> None:
        """Remember people's words, as they are and as JSON writes them."""
        for text in texts:
            for form in (text.strip(), json.dumps(text.strip())[1:-1]):
                self.texts |= {end for end in (form[:LONGEST], form[-LONGEST:]) if len(end.strip()) >= SHORTEST}

    def know_people(self, superuser_url: str) -> None:
        """Read what people wrote from a database that is about to go."""
        with psycopg.connect(superuser_url, row_factory=scalar_row) as connection:
            for query in (*WORDS_OF_PEOPLE, *words_in_domain()):
                self.know_texts(connection.execute(query))

    def search(self) -> Search:
        """Look through all of it."""
        return Search(len(self.lines), len(self.texts), len(self.secrets), list(self._leaks()))

    def _leaks(self) -> Iterator[str]:
        sought = _by_beginning(text for text in self.texts if text not in _vocabulary())
        for line, test in self.lines.items():
            if found := self._secret(line) or _text(line, sought):
                yield f"{test} logged {found}: {line[:300]}"

    def _secret(self, line: str) -> str | None:
        if any(secret in line for secret in self.secrets):
            return "a known secret"
        return next((name for name, form in FORMS.items() if form.search(line)), None)


def _by_beginning(texts: Iterable[str]) -> dict[str, list[str]]:
    """The texts by their first characters, so that a line is walked once and not once per text."""
    sought = defaultdict(list)
    for text in texts:
        sought[text[:SHORTEST]].append(text)
    return sought


def _text(line: str, sought: dict[str, list[str]]) -> str | None:
    for start in range(len(line) - SHORTEST + 1):
        for text in sought.get(line[start : start + SHORTEST], ()):
            if line.startswith(text, start):
                return f"a person's words ({text!r})"
    return None


@cache
def _vocabulary() -> str:
    """The program's own text: a person who writes a name that stands in it is not known by that."""
    sources = [*ROOT.glob("shared/taskchat/**/*.py"), *ROOT.glob("functions/*/*.py")]
    return "\n".join(path.read_text() for path in sources)


class _Runtime(logging.Handler):
    """The Lambda runtime's own handler: all that reaches the root logger, tracebacks included."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.INFO)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        """Take what would be written. The tests' own servers stand where the gateway is, which logs elsewhere."""
        if not record.name.startswith("uvicorn"):
            self._watch.note(self.format(record))


_WATCH = pytest.StashKey[Watch]()
_FOUND = pytest.StashKey[list[Search]]()


@dataclass(frozen=True)
class _InternalErrors:
    """Fail the run, also when it was a worker that had one: it may have lost a report."""

    config: pytest.Config

    def pytest_internalerror(self, excrepr: object) -> None:
        """Keep it for the end."""
        self.config.stash[_FOUND].append(Search(0, 0, 0, [f"an internal error: {excrepr}"[-LONGEST_ERROR:]]))


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs a share of the tests, for another that reports on all of them."""
    return hasattr(config, "workeroutput")


@pytest.fixture(scope="session")
def watch(pytestconfig: pytest.Config) -> Watch:
    """Where to hand in what a process of its own wrote, and to name what may not stand anywhere."""
    return pytestconfig.stash[_WATCH]


def pytest_configure(config: pytest.Config) -> None:
    """Begin to listen, at the level that Lambda logs at."""
    watch = config.stash[_WATCH] = Watch()
    config.stash[_FOUND] = []
    config.pluginmanager.register(_InternalErrors(config))
    root = logging.getLogger()
    root.addHandler(_Runtime(watch))
    root.setLevel(logging.INFO)
    formatted = LambdaPowertoolsFormatter.format

    def noted(self: LambdaPowertoolsFormatter, record: logging.LogRecord) -> str:
        line = formatted(self, record)
        watch.note(line)
        return line

    LambdaPowertoolsFormatter.format = noted  # wherever a test has its handler write to


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Know which test runs."""
    item.config.stash[_WATCH].during = item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Take what was printed: metrics are."""
    report = yield
    item.config.stash[_WATCH].note(report.capstdout + "\n" + report.capstderr)
    return report


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Have a worker's reports arrive, whatever a test wrote: its channel takes no lone surrogate."""
    return sendable((yield))


def sendable(value: Any) -> Any:
    """The value with every lone surrogate in its texts spelled out."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {sendable(key): sendable(item) for key, item in value.items()}
    return type(value)(map(sendable, value)) if isinstance(value, list | tuple) else value


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search all of it, and fail the run when something is found. One of several workers leaves that to the run's."""
    config = session.config
    config.stash[_FOUND].append(config.stash[_WATCH].search())
    if is_worker(config):
        config.workeroutput["searches"] = [sendable(asdict(search)) for search in config.stash[_FOUND]]
    elif any(search.leaks for search in config.stash[_FOUND]) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker found. One that brings nothing has crashed, and may have logged anything."""
    silent = Search(0, 0, 0, [f"{node.gateway.id} did not tell what it logged"])
    found = [Search(**search) for search in getattr(node, "workeroutput", {}).get("searches", [])]
    node.config.stash[_FOUND].extend(found or [silent])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was searched for how much, and what was found."""
    found = terminalreporter.config.stash[_FOUND]
    lines, texts, secrets = (sum(getattr(search, name) for search in found) for name in ("lines", "texts", "secrets"))
    leaks = [leak for search in found for leak in search.leaks]
    searched = f"{lines} log lines searched for {texts} texts of people, {secrets}"
    terminalreporter.section("what was logged")
    terminalreporter.write_line(f"{searched} known secrets and {len(FORMS)} forms of secrets: {len(leaks)} found")
    for leak in leaks:
        terminalreporter.write_line(f"LEAKED {leak}", red=True)
