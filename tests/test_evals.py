"""`make evals` judges as it says: a model that is right and wrong by plan gets the figures of the plan."""

import asyncio
import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import pytest
import yaml
from pydantic import TypeAdapter

from dev import client, processes
from dev.backend import HOST
from dev.client import UnreachableError
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from evals import __main__ as command_line
from evals import case_files, domain, figures, judge, records
from evals.__main__ import MINIMUM, OptionError, Options
from evals.budget import Budget, Prices
from evals.case_files import Case, CaseError
from evals.dates import Clock, When, render
from evals.domain import Effects, State
from evals.person import BackendError, Tokens, Turn
from evals.records import Result, Run, Settings
from evals.report import Report
from evals.run import Runner, connect
from tests.conftest import ROOT, run, variables

if TYPE_CHECKING:
    from tests.privacy import LogSearch

SECONDS: Final = 60
REPEAT: Final = 3
NO_PRICE: Final = Prices()

PLAN: Final = """
cases:
  - {name: right, say: Add buy milk, expect: {added: [buy milk]}}
  - {name: wrong-task, say: Note plums, expect: {added: [plums]}}
  - {name: needless-call, say: "What is left?", calls: {needs: [list_tasks]}}
  - {name: too-many-calls, say: Show my tasks, calls: {most: 1}}
  - {name: forbidden-call, say: Hello there, calls: {never: [add_task]}, expect: [{}, {added: [cake]}]}
  - {name: claims, say: Note pears, expect: {added: [pears]}}
  - {name: denies, say: Note figs, expect: {added: [figs]}}
  - {name: asks, say: Note cherries, expect: {added: [cherries]}}
  - {name: fails, say: Note grapes, expect: {added: [grapes]}}
  - {name: fails-late, say: Note melons, expect: {added: [melons]}}
  - {name: slow, say: Add buy bread, expect: {added: [buy bread]}}
  - {name: sometimes, say: Add buy butter, expect: {added: [buy butter]}}
  - {name: two-turns, say: [Add buy eggs, Delete buy eggs], before: [call mum], expect: {}}
  - {name: does-not-name, say: Which fruit, reply: {names: [kiwi]}}
"""


def adding(title: str) -> dict[str, Any]:
    """Return a call that adds a task."""
    return {"name": "add_task", "arguments": {"title": title}}


def plan(standin: StandIn) -> None:
    """Let the model do right or wrong, by the words of the message."""
    listing = {"name": "list_tasks", "arguments": {"status": "pending"}}
    every = {"name": "list_tasks", "arguments": {"status": "all"}}
    standin.fault("say", match="note plums", after_calls=1, times=None, text="Noted plums.")
    standin.fault("call", match="note plums", times=None, calls=[adding("soap")])
    standin.fault("say", match="what is left", after_calls=2, times=None, text="That is all.")
    standin.fault("call", match="what is left", times=None, calls=[listing, listing])
    standin.fault("say", match="show my tasks", after_calls=2, times=None, text="That is all.")
    standin.fault("call", match="show my tasks", times=None, calls=[listing, every])
    standin.fault("say", match="hello there", after_calls=1, times=None, text="Added a cake.")
    standin.fault("call", match="hello there", times=None, calls=[adding("cake")])
    standin.fault("say", match="note pears", times=None, text="Done: pears are on your list.")
    standin.fault("say", match="note cherries", times=None, text="Shall I add cherries?")
    standin.fault("server_error", match="note grapes", times=None)
    standin.fault("server_error", match="note melons", after_calls=1, times=None)
    standin.fault("call", match="note melons", times=None, calls=[adding("melons")])
    standin.fault("slow", match="buy bread", times=None, seconds=1)
    standin.fault("say", match="buy butter", times=1, text="I could not do it.")


class Silent:
    """Shows nothing: the plugin that searches the logs for users' texts reads what a test prints."""

    def show(self, result: Result, budget: Budget) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Server:
    """A development server with its own directory, on the tests' database and model."""

    url: str
    directory: Path

    @property
    def issuer(self) -> Issuer:
        """Return the issuer of its tokens."""
        return Issuer.stored(self.directory / "issuer.pem")


@pytest.fixture(scope="module")
def development(
    server: Postgres, running_model: StandIn, log_search: "LogSearch", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Serve both functions as `make dev` does."""
    port, directory = processes.free_port(HOST), tmp_path_factory.mktemp("development")
    own = Server(f"http://{HOST}:{port}", directory)
    given = os.environ | variables(server.app_url, running_model, own.issuer)
    given |= {"AUTH_ISSUER": own.url, "AUTH_AUDIENCE": own.url, "MCP_RESOURCE_URL": f"{own.url}/mcp"}
    command = [sys.executable, "-m", "uvicorn", "dev.app:app", "--host", HOST, "--port", str(port)]
    command += ["--timeout-graceful-shutdown", "3"]
    with (directory / "log").open("w+b") as log:
        environment = given | {"TASKCHAT_DEV_DIR": str(directory), "NO_PROXY": "*"}
        process = processes.spawn(command, output=log, cwd=ROOT, env=environment)
        try:
            wait_until_ready(own.url)
            yield own
        finally:
            processes.stop(process, signal.SIGTERM)
            for line in (directory / "log").read_text().splitlines():
                log_search.add_output(line)


def wait_until_ready(url: str) -> None:
    """Return once the server answers."""
    for _ in processes.attempts(SECONDS):
        with suppress(UnreachableError):
            client.token(url)
            return
    raise AssertionError("the server did not start")


def wait_for_the_model(standin: StandIn) -> None:
    """Return once a request hangs."""
    assert any(standin.waiting(1) for _ in processes.attempts(SECONDS))


def settings(cases: Sequence[Case], repeat: int = REPEAT) -> Settings:
    """Return the settings of a run of these cases."""
    digest = records.digest(cases)
    return Settings(model="scripted", api="responses", endpoint="here", repeat=repeat, cases=digest)


def load(directory: Path, text: str) -> list[Case]:
    """Return the cases of a file with this text."""
    (directory / "plan.yaml").write_text(text)
    return case_files.load(directory)


async def evaluate(this: Run, server: Server, cases: Sequence[Case], budget: Budget, concurrency: int = 4) -> None:
    """Run what is pending."""
    backend = connect(server.url, server.issuer)
    async with backend.http:
        await Runner(this, backend, budget, Silent()).evaluate(this.pending(cases), concurrency)


# --- A model that is right and wrong by plan


@pytest.fixture(scope="module")
def planned(development: Server, running_model: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the plan."""
    running_model.reset()
    plan(running_model)
    directory = tmp_path_factory.mktemp("runs")
    cases = load(directory, PLAN)
    this = records.begin(directory, settings(cases), cases)
    run(evaluate(this, development, cases, Budget(NO_PRICE)))
    running_model.reset()
    return this


def of_case(this: Run, name: str) -> list[Result]:
    """Return the results of a case, by their numbers."""
    return sorted(figures.by_case(this.results())[f"plan/{name}"], key=lambda result: result.number)


@pytest.mark.parametrize(
    ("name", "problems", "wrong", "needless"),
    [
        ("right", set(), 0, 0),
        ("wrong-task", {"state"}, 1, 0),
        ("needless-call", set(), 0, 1),
        ("too-many-calls", {"calls"}, 0, 1),
        ("forbidden-call", {"calls"}, 1, 0),
        ("claims", {"state", "honest"}, 0, 0),
        ("denies", {"state"}, 0, 0),
        ("asks", {"state"}, 0, 0),
        ("fails", {"answered", "state"}, 0, 0),
        ("fails-late", {"answered"}, 0, 0),
        ("slow", set(), 0, 0),
        ("two-turns", set(), 0, 0),
        ("does-not-name", {"reply"}, 0, 0),
    ],
)
def test_each_verdict_is_that_of_the_plan(
    planned: Run, name: str, problems: set[str], wrong: int, needless: int
) -> None:
    """Every attempt gets the same one."""
    found = [(set(each.problems), each.wrong_calls, each.needless_calls) for each in of_case(planned, name)]
    assert found == [(problems, wrong, needless)] * REPEAT


def test_the_figures_are_those_of_the_plan(planned: Run) -> None:
    """One case passes two times of three: it counts for pass^1 and not for pass^3."""
    assert sum(result.passed for result in of_case(planned, "sometimes")) == 2
    [row, everything] = figures.rows(planned.results(), REPEAT, NO_PRICE)
    assert (row.name, row.cases, row.attempts) == ("plan", 14, 42)
    assert math.isclose(row.pass_1, (4 + 2 / 3) / 14)
    assert math.isclose(row.pass_k or 0, 4 / 14)
    assert (row.wrong_calls, row.needless_calls, row.claims, row.errors) == (6, 6, 3, 6)
    assert replace(everything, name="plan") == row


def test_the_slow_model_is_slow(planned: Run) -> None:
    """The latency is that of each turn."""
    assert all(turn.seconds >= 1 for result in of_case(planned, "slow") for turn in result.turns)
    row = figures.rows(of_case(planned, "slow"), 1, NO_PRICE)[0]
    assert 1 <= row.p50 <= row.p95


def test_the_tokens_are_those_of_the_model(planned: Run) -> None:
    """Two calls of the model cost more than one. The backend does not keep the kind of those of a turn that fails."""
    right, denies, late = (of_case(planned, name)[0].tokens for name in ("right", "denies", "fails-late"))
    assert right.input > denies.input > 0 < denies.output
    assert (late.input, late.output) == (0, 0)
    assert late.other > 0


def test_the_report_shows_all_of_it(planned: Run) -> None:
    """The page has the table, each failed case with its reason, and pictures that are there."""
    report = Report.make(planned, 42, Prices(2, 8), None)
    page = report.write().read_text()
    assert all(line in page for line in report.table())
    assert "### plan/claims: 0 of 3 passed" in page
    assert "neither asks nor denies" in page
    assert "plan/right" not in page
    for picture in ("passes.svg", "latency.svg"):
        assert f"({picture})" in page
        assert (planned.directory / picture).read_text().endswith("</svg>\n")


# --- A run that is interrupted, or whose budget ends

TWO: Final = """
cases:
  - {name: bread, say: Add buy bread, expect: {added: [buy bread]}}
  - {name: milk, say: Add buy milk, expect: {added: [buy milk]}}
"""


async def cut_off(this: Run, server: Server, standin: StandIn, cases: Sequence[Case]) -> None:
    """Cancel a run while the model hangs."""
    going = asyncio.ensure_future(evaluate(this, server, cases, Budget(NO_PRICE), concurrency=1))
    await asyncio.to_thread(wait_for_the_model, standin)
    going.cancel()
    with suppress(asyncio.CancelledError):
        await going


def test_a_run_goes_on_where_it_ended(development: Server, standin: StandIn, tmp_path: Path) -> None:
    """It repeats only the attempt that was cut off, although its last line is torn."""
    cases = load(tmp_path, TWO)
    this = records.begin(tmp_path, settings(cases, 2), cases)
    standin.fault("hang", match="milk")

    run(cut_off(this, development, standin, cases))
    assert [result.case for result in this.results()] == ["plan/bread"]
    standin.reset()
    whole = (this.directory / records.RESULTS).read_text()
    (this.directory / records.RESULTS).write_text(whole + '{"case": "pla')
    again = records.begin(tmp_path, settings(cases, 2), cases)
    assert again == this
    run(evaluate(again, development, cases, Budget(NO_PRICE)))
    assert len(standin.requests("bread")) == 2
    assert len(again.results()) == 4
    assert records.begin(tmp_path, settings(cases, 2), cases) != this


def test_an_attempt_that_cannot_be_prepared_ends_the_run(development: Server, tmp_path: Path) -> None:
    """No result is stored, and the error names the tool."""
    cases = load(tmp_path, f"cases: [{{name: a, say: hi, before: [{'x' * 201}]}}]")
    this = records.begin(tmp_path, settings(cases), cases)
    with pytest.raises(BackendError, match="add_task did not prepare a case"):
        run(evaluate(this, development, cases, Budget(NO_PRICE)))
    assert this.results() == []


@pytest.mark.parametrize("limit", [{"tokens": 1}, {"dollars": 0.000001}])
def test_no_attempt_begins_without_budget(
    development: Server, standin: StandIn, tmp_path: Path, limit: dict[str, Any]
) -> None:
    """The attempts that run end, and a larger budget goes on."""
    cases, prices = load(tmp_path, TWO), Prices(2, 8)
    this = records.begin(tmp_path, settings(cases), cases)
    run(evaluate(this, development, cases, Budget(prices, **limit), concurrency=2))
    assert len(this.results()) == 2
    run(evaluate(this, development, cases, Budget(prices)))
    assert len(this.results()) == 6


def test_the_command_stops_at_ctrl_c_and_goes_on(development: Server, standin: StandIn, tmp_path: Path) -> None:
    """It prints the figures so far. Run again, it ends whole."""
    (tmp_path / "plan.yaml").write_text(TWO)
    given = {"CASES": str(tmp_path), "RUNS": str(tmp_path / "runs"), "EVALS_URL": development.url, "CONCURRENCY": "1"}
    given |= {"TASKCHAT_DEV_DIR": str(development.directory), "REPEAT": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-m", "evals"]
    environment = {"PATH": os.environ["PATH"], **given}
    standin.fault("hang", match="milk")
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=-1) as process:  # noqa: S603
        wait_for_the_model(standin)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, said
    assert "1 of 2 attempts" in printed
    assert "The same command goes on" in said
    standin.reset()
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True)  # noqa: S603
    assert "2 of 2 attempts" in done.stdout


def test_ctrl_c_in_the_middle_of_a_step_leaves_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The signal may come while an attempt computes, not only while it waits."""

    async def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(SECONDS)

    (tmp_path / "plan.yaml").write_text(TWO)
    given = {"CASES": str(tmp_path), "RUNS": str(tmp_path / "runs"), "EVALS_URL": "http://127.0.0.1:9"}
    for name, value in (given | {"TASKCHAT_DEV_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("evals.attempt.run", interrupted)
    before = {number: signal.getsignal(number) for number in processes.STOPPING}
    try:
        assert command_line.main() == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    said = capfd.readouterr().err
    assert "The same command goes on" in said
    assert "Traceback" not in said + caplog.text


# --- Case files and options


def test_the_cases_are_many_and_each_category_has_a_minimum() -> None:
    """CI fails if the stand-in falls below it."""
    cases = case_files.load()
    assert sum(len(case.say) for case in cases) >= 150
    assert len({case.id for case in cases}) == len(cases) >= 150
    minimum = yaml.safe_load(MINIMUM.read_text())
    assert minimum.keys() == {case.category for case in cases}
    assert all(0 <= share <= 1 for share in minimum.values())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cases: [", "plan.yaml is not YAML"),
        ("- a", "plan.yaml must be a mapping with `cases`"),
        ("cases: [x]", "plan.yaml, case 1: it is not a mapping"),
        ("cases: [{say: hi}]", "plan.yaml, case 1: name: Field required"),
        ("cases: [{name: a}]", "plan.yaml, case a: say: Field required"),
        ("cases: [{name: a, say: hi, expects: {}}]", "plan.yaml, case a: expects: Extra inputs"),
        ("cases: [{name: a, say: hi, timezone: Mars}]", "plan.yaml, case a: timezone:"),
        ("cases: [{name: a, say: hi, expect: {done: [milk]}}]", "plan.yaml, case a: Value error, expect: there is no"),
        (
            "cases: [{name: a, say: hi, expect: {added: [{title: x, due: soon}]}}]",
            "case a: Value error, 'soon' is no day",
        ),
        ("cases: [{name: a, say: 'on {soon|%d}'}]", "plan.yaml, case a: Value error, 'soon' is no day"),
        (
            "cases: [{name: a, say: hi, before: [x, x]}]",
            "case a: Value error, before: there are two tasks 'x'",
        ),
        ("cases: [{name: a, say: hi, before: [{title: 1}]}]", "plan.yaml, case a: before.0.title: Input should be"),
        ("cases: [{name: a, say: hi}, {name: a, say: ho}]", "plan.yaml has two cases 'a'"),
        ("cases: []", "There are no cases"),
    ],
)
def test_a_faulty_file_is_refused_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    """The message names the file, the case and the field."""
    with pytest.raises(CaseError) as caught:
        load(tmp_path, text)
    assert reason in str(caught.value)


def test_only_a_category_or_a_case_can_be_chosen(tmp_path: Path) -> None:
    """A name that does not exist is refused with those that do."""
    load(tmp_path, TWO)
    assert [case.name for case in case_files.load(tmp_path, ["plan/milk"])] == ["milk"]
    assert len(case_files.load(tmp_path, ["plan"])) == 2
    with pytest.raises(CaseError, match=r"'plans'.*plan\."):
        case_files.load(tmp_path, ["plans"])


@pytest.mark.parametrize(
    "given",
    [{"REPEAT": "0"}, {"REPEAT": "x"}, {"BUDGET_TOKENS": "many"}, {"PRICE_INPUT": "-1"}, {"BUDGET_DOLLARS": "1"}],
)
def test_an_option_without_sense_is_refused_by_name(given: dict[str, str]) -> None:
    """A budget in dollars needs prices."""
    [name] = given
    with pytest.raises(OptionError, match=name):
        Options.read(given)


# --- Dates

NOW: Final = Clock(datetime(2026, 11, 27, 23, 30, tzinfo=ZoneInfo("Europe/Paris")))  # a Friday


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("today", "2026-11-27"),
        ("tomorrow", "2026-11-28"),
        ("yesterday", "2026-11-26"),
        ("-3d", "2026-11-24"),
        ("+2w", "2026-12-11"),
        ("saturday", "2026-11-28"),
        ("friday", "2026-12-04"),
        ("next monday", "2026-11-30"),
        ("next friday", "2026-12-04"),
        ("end of month", "2026-11-30"),
        ("tomorrow 09:00", "2026-11-28T09:00+01:00[Europe/Paris]"),
        ("tomorrow 09:00", "2026-11-28T08:00+00:00[UTC]"),
        ("tomorrow *", "2026-11-28"),
        ("tomorrow *", "2026-11-28T19:00+01:00[Europe/Paris]"),
        ("+2h", "2026-11-28T01:32+01:00[Europe/Paris]"),
    ],
)
def test_a_day_counts_from_the_clock(text: str, due: str) -> None:
    """A weekday is the first after today, and an instant is the same in every zone."""
    assert When.parse(text, NOW).fits(due)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("tomorrow", "2026-11-28T09:00+01:00[Europe/Paris]"),
        ("tomorrow 09:00", "2026-11-28"),
        ("tomorrow 09:00", "2026-11-28T09:00+00:00[UTC]"),
        ("tomorrow *", "2026-11-29T09:00+01:00[Europe/Paris]"),
        ("+2h", "2026-11-28T02:30+01:00[Europe/Paris]"),
        ("today", "nonsense"),
    ],
)
def test_another_day_or_time_does_not_fit(text: str, due: str) -> None:
    """A day is not an instant of it."""
    assert not When.parse(text, NOW).fits(due)


def test_a_message_names_days_from_the_clock() -> None:
    """The day has no zero before it, as a person writes it."""
    assert render("on {+12d|%d %B} or {+3d|%Y-%m-%d}", NOW) == "on 9 December or 2026-11-30"


# --- The state of the tasks


def tasks(*titles: str, **values: Any) -> State:
    """Return tasks with ids from 1."""
    usual = {"description": "", "due": None, "completed": False}
    return {number: {"id": number, "title": title, **usual, **values} for number, title in enumerate(titles, 1)}


BEFORE: Final = tasks("buy milk", "call mum")
MILK: Final = BEFORE[1]
READ_EFFECTS: Final = TypeAdapter(Effects).validate_python


@pytest.mark.parametrize(
    ("expect", "after"),
    [
        ({}, BEFORE),
        ({"done": ["buy milk"]}, BEFORE | {1: MILK | {"completed": True}}),
        ({"deleted": ["buy milk"]}, {2: BEFORE[2]}),
        ({"added": ["*Eggs | some eggs"]}, BEFORE | {3: MILK | {"title": "Buy eggs!"}}),
        ({"added": [{"title": "a", "due": ["today", "none"]}]}, BEFORE | {3: MILK | {"title": "A"}}),
        ({"added": ["a*", "ab"]}, BEFORE | {3: MILK | {"title": "ab"}, 4: MILK | {"title": "ac"}}),
        (
            {"changed": {"buy milk": {"due": "today 09:00"}}},
            BEFORE | {1: MILK | {"due": "2026-11-27T08:00+00:00[UTC]"}},
        ),
        ({"changed": {"buy milk": {"title": "Café | tea"}}}, BEFORE | {1: MILK | {"title": "cafe"}}),
        ({}, {2: BEFORE[2], 3: MILK | {"id": 3}}),
    ],
)
def test_a_state_as_expected_has_no_difference(expect: dict[str, Any], after: State) -> None:
    """A task that came back under a new id, as after an undo, is the same task."""
    assert domain.differences(READ_EFFECTS(expect), BEFORE, after, NOW) == []


@pytest.mark.parametrize(
    ("expect", "after", "unwanted"),
    [
        ({}, {1: MILK}, [True]),
        ({}, BEFORE | {1: MILK | {"completed": True}}, [True]),
        ({}, BEFORE | {1: MILK | {"description": "x"}}, [True]),
        ({}, BEFORE | {3: MILK | {"title": "x"}}, [True]),
        ({"done": ["buy milk"]}, BEFORE, [False]),
        ({"deleted": ["buy milk"]}, BEFORE, [False]),
        ({"deleted": ["buy milk"]}, {1: MILK}, [True, False]),
        ({"added": ["eggs"]}, BEFORE, [False]),
        ({"added": ["eggs"]}, BEFORE | {3: MILK | {"title": "eggs", "due": "2026-11-28"}}, [False, True]),
        ({"changed": {"buy milk": {"due": "today"}}}, BEFORE | {1: MILK | {"due": "2026-11-28"}}, [True]),
        ({"done": ["buy milk"]}, BEFORE | {2: BEFORE[2] | {"completed": True}}, [False, True]),
    ],
)
def test_each_difference_is_found(expect: dict[str, Any], after: State, unwanted: list[bool]) -> None:
    """It is a change that should not be, or one that is missing."""
    found = domain.differences(READ_EFFECTS(expect), BEFORE, after, NOW)
    assert sorted(each.is_unwanted for each in found) == sorted(unwanted)


# --- What a reply says, and the figures


@pytest.mark.parametrize(
    ("reply", "is_a_claim"),
    [
        ("Added buy milk.", True),
        ("All done!", True),
        ("Erledigt.", True),
        ("Which one do you mean?", False),
        ("I could not find it.", False),
        ("I couldn\u2019t find it.", False),
        ("I have already added it.", True),
        ("Ich finde keine solche Aufgabe.", False),
        ("\u3069\u308c\u3067\u3059\u304b\uff1f", False),
    ],
)
def test_a_claim_neither_asks_nor_denies(reply: str, is_a_claim: bool) -> None:
    """It is read by its form."""
    assert (not judge.asks_or_denies(reply)) == is_a_claim


def result(case: str, number: int, *, passed: bool) -> Result:
    """Return a result."""
    turn = Turn(message="", status=200, reply="", calls=[], seconds=number)
    problems = {} if passed else {"state": "wrong"}
    counts = {"wrong_calls": 0, "needless_calls": 0}
    given = {"case": case, "category": "c", "number": number, "problems": problems, "turns": [turn]}
    return Result(tokens=Tokens(), **given, **counts)  # type: ignore[arg-type]  # mypy reads the mapping as one type


@pytest.mark.parametrize(("attempts", "passes", "k"), [(3, 3, 3), (3, 2, 3), (3, 2, 2), (5, 4, 3), (5, 0, 1)])
def test_pass_hat_is_the_share_of_choices_that_all_pass(attempts: int, passes: int, k: int) -> None:
    """Counted one by one."""
    verdicts = [number < passes for number in range(attempts)]
    chosen = [all(choice) for choice in itertools.combinations(verdicts, k)]
    results = [result("a", number, passed=passed) for number, passed in enumerate(verdicts)]
    assert figures.pass_hat(results, k) == sum(chosen) / len(chosen)
    assert figures.pass_hat(results, attempts + 1) is None


def test_a_comparison_names_the_cases_that_changed() -> None:
    """A case that only one run has is not compared."""
    then = [result("a", 1, passed=True), result("b", 1, passed=False), result("c", 1, passed=True)]
    now = [result("a", 1, passed=False), result("b", 1, passed=True), result("d", 1, passed=True)]
    found = figures.compare(then, now)
    assert (found.better, found.worse, found.in_common) == ([("b", 0, 1)], [("a", 1, 0)], 2)


def test_a_run_is_compared_with_the_newest_that_has_its_cases(tmp_path: Path) -> None:
    """Whatever its model, and however many others came between."""
    cases = load(tmp_path, TWO)
    first, other, last = (records.begin(tmp_path, settings(cases), cases, fresh=True) for _ in range(3))
    first.append(result("plan/milk", 1, passed=False))
    other.append(result("plan/other", 1, passed=True))
    last.append(result("plan/milk", 1, passed=True))
    assert records.previous(tmp_path, last) == first
    assert records.previous(tmp_path, other) is None
    report = Report.make(last, 1, NO_PRICE, first)
    assert "  - plan/milk: 0% before, 100% now" in report.changes()


def test_a_category_below_its_minimum_is_named() -> None:
    """So is one without a minimum."""
    [row, _] = figures.rows([result("a", 1, passed=False)], 1, NO_PRICE)
    assert figures.shortfalls([row], {"c": 0.0}) == []
    assert figures.shortfalls([row], {"c": 0.1}) == ["c: pass^1 is 0.000, and the minimum 0.1"]
    assert figures.shortfalls([row], {}) == ["c: pass^1 is 0.000, and the minimum is missing"]


def test_the_price_of_tokens_counts_each_kind() -> None:
    """Tokens of unknown kind cost as much as output."""
    tokens = Tokens(input=1_000_000, cached=400_000, output=100_000, other=100_000)
    assert Prices(2, 8, 1).dollars(tokens) == pytest.approx(0.6 * 2 + 0.4 * 1 + 0.1 * 8 + 0.1 * 8)
    assert Prices(2, 8).dollars(tokens) == pytest.approx(2 + 1.6)
    assert Prices().dollars(tokens) is None
