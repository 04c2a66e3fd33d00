"""Search all logs of the test run for secrets and users' texts, and check each audit line: a pytest plugin.

The plugin collects what the program writes in every test, as CloudWatch would get it. It fails the run when it finds a
secret or a user's text. It knows a secret by its form or by its value. It reads the users' texts from the test
databases before they are dropped. A fixture that starts a process gives that process's output to `log_search`.
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
from psycopg import sql
from psycopg.rows import scalar_row, tuple_row

from tests import audit_schema

ROOT: Final = Path(__file__).parent.parent

SHORTEST: Final = 8
"""Minimum length of a text to search for. Shorter texts ("milk") occur in any log by chance."""
LONGEST: Final = 24
"""Characters of a text's beginning and end to search for. A log may have cut the text."""
LONGEST_ERROR: Final = 300
"""Characters to show from the end of an internal error."""

DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")

FORMS: Final = {
    "a token": re.compile(r"eyJ[\w-]{10,}\.[\w-]{10,}"),
    "a bearer's credentials": re.compile(r"bearer\s+[\w.~+/-]{8,}", re.IGNORECASE),
    "an Authorization header": re.compile(r"authorization['\"]?\s*[:=,]", re.IGNORECASE),
    "a URL with a password": re.compile(r"\w+://[^\s:/@]+:[^\s@/]+@"),
    "an API key": re.compile(r"\bsk-[\w-]{8,}"),
    "a private key": re.compile("PRIVATE KEY-----"),
}
"""Patterns of secrets."""

TEXTS_OF_USERS: Final = (
    sql.SQL("select content from message"),
    sql.SQL("select title from conversation"),
    sql.SQL("select tool from tool_call"),
    sql.SQL(
        "select value #>> '{{}}' from tool_call, jsonb_path_query(arguments::jsonb, 'strict $.**') value"
        " where jsonb_typeof(value) = 'string' and value #>> '{{}}' <> user_id"
    ).format(),
)
"""Queries for the users' texts in the engine's tables. A model may use a user's text as the name of a tool."""

COLUMNS_OF_DOMAIN: Final = """
select table_name, column_name from information_schema.columns
where table_schema = 'public' and data_type in ('text', 'character varying') and column_name <> 'user_id'
and table_name not in ('conversation', 'message', 'tool_call', 'allowance', 'alembic_version')
"""
"""The text columns of all other tables. A tool's result has their texts under the columns' names."""


@dataclass(frozen=True)
class SearchResult:
    """Hold the result of one search."""

    lines: int
    texts: int
    secrets: int
    leaks: list[str]
    """One sentence for each leak: the test, the kind of leak and the log line."""


@dataclass
class LogSearch:
    """Collect log lines, and the texts and secrets to search for."""

    test: str = "collection"
    """The test that is running."""
    lines: dict[str, str] = field(default_factory=dict)
    """Each line, with the first test that wrote it."""
    secrets: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    def add_output(self, output: str) -> None:
        """Add lines of output."""
        for line in output.splitlines():
            self.lines.setdefault(line, self.test)

    def add_texts(self, texts: Iterable[str | None]) -> None:
        """Add users' texts, in their own form and in JSON's. Skip null, and a day: each line has one in its time."""
        for text in texts:
            if text is None or DAY.fullmatch(text):
                continue
            for form in (text.strip(), json.dumps(text.strip())[1:-1]):
                self.texts |= {end for end in (form[:LONGEST], form[-LONGEST:]) if len(end.strip()) >= SHORTEST}

    def add_texts_from(self, superuser_url: str) -> None:
        """Add all users' texts of a database that is about to be dropped."""
        with psycopg.connect(superuser_url, row_factory=scalar_row) as connection:
            for query in _queries(connection):
                self.add_texts(connection.execute(query))

    def search(self) -> SearchResult:
        """Search all lines for all texts and secrets."""
        return SearchResult(len(self.lines), len(self.texts), len(self.secrets), list(self._leaks()))

    def _leaks(self) -> Iterator[str]:
        sought = _by_beginning(text for text in self.texts if text not in _vocabulary())
        for line, test in self.lines.items():
            if found := self._secret(line) or _text(line, sought) or audit_schema.fault_of(line):
                yield f"{test} logged {found}: {line[:300]}"

    def _secret(self, line: str) -> str | None:
        if any(secret in line for secret in self.secrets):
            return "a known secret"
        return next((name for name, form in FORMS.items() if form.search(line)), None)


def _queries(connection: psycopg.Connection[Any]) -> Iterator[sql.Composable]:
    """Yield the queries for all users' texts in this database."""
    yield from TEXTS_OF_USERS
    column_of = sql.SQL("select {} from {}")
    result = sql.SQL("select value #>> '{{}}' from tool_call, jsonb_path_query(result::jsonb, {}) value")
    for table, column in connection.cursor(row_factory=tuple_row).execute(COLUMNS_OF_DOMAIN).fetchall():
        yield column_of.format(sql.Identifier(column), sql.Identifier(table))
        yield result.format(sql.Literal(f"strict $.**.{column}"))


def _by_beginning(texts: Iterable[str]) -> dict[str, list[str]]:
    """Group the texts by their first characters, so that the search reads each line once."""
    sought = defaultdict(list)
    for text in texts:
        sought[text[:SHORTEST]].append(text)
    return sought


def _text(line: str, sought: dict[str, list[str]]) -> str | None:
    for start in range(len(line) - SHORTEST + 1):
        for text in sought.get(line[start : start + SHORTEST], ()):
            if line.startswith(text, start):
                return f"a user's text ({text!r})"
    return None


@cache
def _vocabulary() -> str:
    """Return the program's own source text, and what names the model and the function of the tests.

    A user's text that occurs in it is not a leak: Hypothesis makes texts of the constants in all of this.
    """
    sources = [*ROOT.glob("shared/taskchat/**/*.py"), *ROOT.glob("functions/*/*.py")]
    sources += [ROOT / "dev/backend.py", ROOT / "testing/gateway.py"]
    return "\n".join(path.read_text() for path in sources)


class _RuntimeHandler(logging.Handler):
    """Stand for the Lambda runtime's handler: get each record of the root logger, with tracebacks."""

    def __init__(self, log_search: LogSearch) -> None:
        super().__init__(logging.INFO)
        self._watch = log_search

    def emit(self, record: logging.LogRecord) -> None:
        """Add the record. Skip uvicorn's records: it stands for the gateway, which logs elsewhere."""
        if not record.name.startswith("uvicorn"):
            self._watch.add_output(self.format(record))


_LOG_SEARCH = pytest.StashKey[LogSearch]()
_FOUND = pytest.StashKey[list[SearchResult]]()


@dataclass(frozen=True)
class _InternalErrors:
    """Fail the run after an internal error of pytest, also in a worker: a report may be lost."""

    config: pytest.Config

    def pytest_internalerror(self, excrepr: object) -> None:
        """Keep the error until the end of the run."""
        self.config.stash[_FOUND].append(SearchResult(0, 0, 0, [f"an internal error: {excrepr}"[-LONGEST_ERROR:]]))


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workeroutput")


@pytest.fixture(scope="session")
def log_search(pytestconfig: pytest.Config) -> LogSearch:
    """Give the log search of this run, so that a test can add output, texts and secrets."""
    return pytestconfig.stash[_LOG_SEARCH]


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect, at the log level that Lambda uses."""
    log_search = config.stash[_LOG_SEARCH] = LogSearch()
    config.stash[_FOUND] = []
    config.pluginmanager.register(_InternalErrors(config))
    root = logging.getLogger()
    root.addHandler(_RuntimeHandler(log_search))
    root.setLevel(logging.INFO)
    formatted = LambdaPowertoolsFormatter.format

    def noted(self: LambdaPowertoolsFormatter, record: logging.LogRecord) -> str:
        line = formatted(self, record)
        log_search.add_output(line)
        return line

    LambdaPowertoolsFormatter.format = noted  # on the class: a test may replace a handler's stream


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remember which test runs."""
    item.config.stash[_LOG_SEARCH].test = item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the test printed, such as metrics."""
    report = yield
    item.config.stash[_LOG_SEARCH].add_output(report.capstdout + "\n" + report.capstderr)
    return report


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape lone surrogates in a worker's report: the workers' channel cannot send them."""
    return sendable((yield))


def sendable(value: Any) -> Any:
    """Return the value with every lone surrogate escaped."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {sendable(key): sendable(item) for key, item in value.items()}
    return type(value)(map(sendable, value)) if isinstance(value, list | tuple) else value


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search, and fail the run when there is a leak. A worker sends its result to the main process."""
    config = session.config
    config.stash[_FOUND].append(config.stash[_LOG_SEARCH].search())
    if is_worker(config):
        config.workeroutput["searches"] = [sendable(asdict(search)) for search in config.stash[_FOUND]]
    elif any(search.leaks for search in config.stash[_FOUND]) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add a worker's results. A worker without results has crashed, which counts as a leak."""
    silent = SearchResult(0, 0, 0, [f"{node.gateway.id} did not report what it logged"])
    found = [SearchResult(**search) for search in getattr(node, "workeroutput", {}).get("searches", [])]
    node.config.stash[_FOUND].extend(found or [silent])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how much was searched, and each leak."""
    found = terminalreporter.config.stash[_FOUND]
    lines, texts, secrets = (sum(getattr(search, name) for search in found) for name in ("lines", "texts", "secrets"))
    leaks = [leak for search in found for leak in search.leaks]
    searched = f"{lines} log lines searched for {texts} texts of users, {secrets}"
    terminalreporter.section("what was logged")
    terminalreporter.write_line(f"{searched} known secrets and {len(FORMS)} forms of secrets: {len(leaks)} found")
    for leak in leaks:
        terminalreporter.write_line(f"LEAKED {leak}", red=True)
