"""Run the pending attempts side by side with pydantic-evals, and store each result as soon as it is judged."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import httpx2
from pydantic_evals import Case, Dataset
from pydantic_evals.lifecycle import CaseLifecycle
from pydantic_evals.reporting import ReportCase, ReportCaseFailure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dev.tokens import Issuer
from evals import attempt
from evals.attempt import Attempt, Outcome
from evals.budget import Budget
from evals.judge import EVALUATORS
from evals.person import TIMEOUT_SECONDS, Backend
from evals.records import Result, Run

Reported = ReportCase[Attempt, Outcome, None] | ReportCaseFailure[Attempt, Outcome, None] | None


class Skipped(Exception):
    """Raised for an attempt that does not begin: the budget is spent, or the backend has failed."""


class Watcher(Protocol):
    """Shows the progress."""

    def show(self, result: Result, budget: Budget) -> None:
        """Show that an attempt has ended."""


class Lines:
    """Prints a line for each attempt."""

    def show(self, result: Result, _budget: Budget) -> None:
        """Print the attempt and its problems."""
        seconds = sum(turn.seconds for turn in result.turns)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.problems.items())
        verdict = "ok  " if result.passed else "FAIL"
        print(f"{verdict} {result.case} #{result.number} {seconds:.1f} s {reasons}".rstrip(), flush=True)


class Bar(Progress):
    """A bar in a terminal, with the failures and the cost so far."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=Console(stderr=True))
        self._failed = 0
        self._task = self.add_task("starting", total=total)

    def show(self, result: Result, budget: Budget) -> None:
        """Move the bar on."""
        self._failed += not result.passed
        dollars = f", ${budget.spent_dollars:.2f}" if budget.spent_dollars else ""
        text = f"{self._failed} failed, {budget.spent:,} tokens{dollars}"
        self.update(self._task, advance=1, description=text)


def watching(total: int) -> AbstractContextManager[Watcher]:
    """Return a bar in a terminal, and lines elsewhere."""
    return Bar(total) if sys.stderr.isatty() else nullcontext(Lines())


class Runner:
    """Runs attempts against one backend, within a budget."""

    def __init__(self, run: Run, backend: Backend, budget: Budget, watcher: Watcher) -> None:
        self._run, self._backend, self._budget, self._watcher = run, backend, budget, watcher
        self._failure: Exception | None = None

    async def evaluate(self, attempts: list[Attempt], concurrency: int) -> None:
        """Run the attempts until all are done or the budget is spent. Raises the error that ended an attempt."""
        cases = [Case[Attempt, Outcome, None](name=each.id, inputs=each) for each in attempts]
        dataset = Dataset[Attempt, Outcome, None](name="evals", cases=cases, evaluators=EVALUATORS)
        await dataset.evaluate(
            self._attempt, max_concurrency=concurrency, progress=False, lifecycle=_at_end(self._store)
        )
        if self._failure:
            raise self._failure

    async def _attempt(self, each: Attempt) -> Outcome:
        if self._budget.is_spent or self._failure:
            raise Skipped
        try:
            return await attempt.run(each, self._backend)
        except Exception as error:  # pydantic-evals keeps it for its report, which nothing reads
            self._failure = error
            raise

    def _store(self, reported: Reported) -> None:
        if not isinstance(reported, ReportCase):
            return
        if reported.evaluator_failures:
            self._failure = RuntimeError(reported.evaluator_failures[0].error_stacktrace)
            return
        result = result_of(reported)
        self._budget.add(result.tokens)
        self._run.append(result)
        self._watcher.show(result, self._budget)


def _at_end(store: Callable[[Reported], None]) -> type[CaseLifecycle[Attempt, Outcome, None]]:
    """Return a lifecycle that passes each report on."""

    class Storing(CaseLifecycle[Attempt, Outcome, None]):
        async def teardown(self, result: Reported) -> None:
            store(result)

    return Storing


def result_of(reported: ReportCase[Attempt, Outcome, None]) -> Result:
    """Return the verdicts of the evaluators as a result to store."""
    case, outcome = reported.inputs.case, reported.output
    failed = {name: found.reason or "" for name, found in reported.assertions.items() if not found.value}
    counts: dict[str, Any] = {name: found.value for name, found in reported.scores.items()}
    return Result(
        case=case.id,
        category=case.category,
        number=reported.inputs.number,
        problems=failed,
        tokens=outcome.tokens,
        turns=outcome.turns,
        **counts,
    )


def connect(url: str, issuer: Issuer) -> Backend:
    """Return the backend at the URL. Close its `http` in the end."""
    limits = httpx2.Limits(max_connections=None)
    return Backend(httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, limits=limits, trust_env=False), issuer)
