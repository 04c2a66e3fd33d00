"""Measure how well the configured model does the job: `make evals` (docs/evals.md).

Each option is a variable of the environment, as for `make dev`. The exit code is 0 when the run is whole and no
category is below its minimum, 1 otherwise, and 2 for a wrong option.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2
import yaml

from dev import backend, processes, state
from dev.processes import StartupError, stop_on_signals
from dev.tokens import Issuer
from evals import case_files, figures, records, run
from evals.attempt import Attempt
from evals.budget import Budget, Prices
from evals.case_files import Case, CaseError
from evals.person import BackendError
from evals.records import Run, Settings
from evals.report import Report
from taskchat.settings import Settings as BackendSettings
from testing.drawing import LayoutError

RUNS: Final = state.ROOT / ".dev" / "evals" / "runs"
MINIMUM: Final = Path(__file__).with_name("standin.yaml")
"""The stand-in's share of passes in each category, at least."""
CONCURRENCY: Final = 4
DEFAULT_MODEL: Final[str] = BackendSettings.model_fields["model"].default
LIMITS: Final = ("MCP_BURST", "MCP_REQUESTS_PER_MINUTE", "DATA_BURST", "DATA_REQUESTS_PER_MINUTE")
"""Limits of the backend that the preparation of a long list would reach."""


class OptionError(Exception):
    """Raised for an option that makes no sense. Names it."""


@dataclass(frozen=True)
class Options:
    """The options of a run."""

    repeat: int
    only: list[str]
    concurrency: int
    fresh: bool
    cases: Path
    runs: Path
    url: str | None
    """A server that runs already, on the same TASKCHAT_DEV_DIR. None starts one."""
    budget: Budget
    minimum: Path | None

    @classmethod
    def read(cls, given: Mapping[str, str]) -> "Options":
        """Return the options. Raises OptionError."""
        names = ("PRICE_INPUT", "PRICE_OUTPUT", "PRICE_CACHED")
        prices = Prices(*(_number(given, name) for name in names))
        tokens, dollars = _number(given, "BUDGET_TOKENS"), _number(given, "BUDGET_DOLLARS")
        if dollars is not None and (prices.input is None or prices.output is None):
            raise OptionError("BUDGET_DOLLARS needs the prices of a million tokens: PRICE_INPUT=… PRICE_OUTPUT=…")
        usual = None if given.get("OPENAI_API_KEY") or given.get("CASES") else str(MINIMUM)
        minimum = given.get("MINIMUM") or usual
        return cls(
            repeat=_count(given, "REPEAT", 3),
            only=given.get("ONLY", "").replace(",", " ").split(),
            concurrency=_count(given, "CONCURRENCY", CONCURRENCY),
            fresh=bool(given.get("FRESH")),
            cases=Path(given.get("CASES") or case_files.DIRECTORY),
            runs=Path(given.get("RUNS") or RUNS),
            url=given.get("EVALS_URL") or None,
            budget=Budget(prices, None if tokens is None else int(tokens), dollars),
            minimum=Path(minimum) if minimum else None,
        )


def _number(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name) or None
    try:
        number = None if text is None else float(text.replace(",", "").replace("_", ""))
    except ValueError:
        raise OptionError(f"{name}={text} is not a number.") from None
    if number is not None and not 0 <= number < float("inf"):
        raise OptionError(f"{name}={text} is not a number from 0.")
    return number


def _count(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise OptionError(f"{name}={text} is not a whole number from 1 to 100.")
    return int(text)


def main() -> int:
    """Run the pending attempts, print the figures and write the report."""
    try:
        options = Options.read(os.environ)
        cases = case_files.load(options.cases, options.only)
    except (OptionError, CaseError) as error:
        print(error, file=sys.stderr)
        return 2
    this = records.begin(options.runs, _settings(options, cases), cases, fresh=options.fresh)
    try:
        stop_on_signals()
        _run(options, this, cases)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
    except (StartupError, BackendError, OSError, httpx2.HTTPError) as error:
        print(f"FAILED: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return _report(options, this, cases)


def _settings(options: Options, cases: Sequence[Case]) -> Settings:
    given = os.environ
    is_real = bool(given.get("OPENAI_API_KEY"))
    endpoint = urlsplit(given.get("OPENAI_BASE_URL") or "https://api.openai.com").netloc
    return Settings(
        model=given.get("MODEL") or DEFAULT_MODEL if is_real else "stand-in",
        api=given.get("MODEL_API") or "responses",
        endpoint=endpoint if is_real else "this machine",
        repeat=options.repeat,
        cases=records.digest(cases),
    )


def _run(options: Options, this: Run, cases: Sequence[Case]) -> None:
    """Run what is pending. Raises StartupError, BackendError or an error of HTTP, and KeyboardInterrupt for Ctrl-C."""
    pending = this.pending(cases)
    for result in this.results():
        options.budget.add(result.tokens)
    if not pending or options.budget.is_spent:
        return
    done = len(cases) * options.repeat - len(pending)
    print(f"{len(pending):,} attempts" + (f" ({done:,} are done)" if done else ""), file=sys.stderr, flush=True)
    if options.url:
        _evaluate(options, this, pending, options.url)
        return
    os.environ.update(dict.fromkeys(LIMITS, "0"))
    progress = backend.Progress(sys.stderr)
    with backend.running(processes.free_port(backend.HOST), progress, reload=False) as server:
        _evaluate(options, this, pending, server.url)


def _evaluate(options: Options, this: Run, pending: list[Attempt], url: str) -> None:
    issuer = Issuer.stored(state.directory() / "issuer.pem")

    async def evaluate() -> None:
        _cancel_on_signals()
        connected = run.connect(url, issuer)
        async with connected.http:
            with run.watching(len(pending)) as watcher:
                await run.Runner(this, connected, options.budget, watcher).evaluate(pending, options.concurrency)

    try:
        asyncio.run(evaluate())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    except Exception:
        stop_on_signals()
        raise
    stop_on_signals()


def _cancel_on_signals() -> None:
    """Let a signal cancel this task. An exception in the middle of another one would be reported with a traceback."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        stop_on_signals(partial(loop.call_soon_threadsafe, task.cancel))


def _report(options: Options, this: Run, cases: Sequence[Case]) -> int:
    """Print and write the report. Return the exit code."""
    report = Report.make(this, len(cases) * options.repeat, options.budget.prices, records.previous(options.runs, this))
    print("", f"{report.headline()}.", "", *report.table(), "", *report.changes(), "", sep="\n")
    try:
        print(f"Written: {state.shown(report.write())}")
    except LayoutError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    if this.pending(cases):
        print(f"The run is not whole. {_why_not_whole(options.budget)}", file=sys.stderr)
        return 1
    short = _shortfalls(options, report)
    print(*short, sep="\n", end="\n" if short else "", file=sys.stderr)
    return 1 if short else 0


def _why_not_whole(budget: Budget) -> str:
    if not budget.is_spent:
        return "The same command goes on from here."
    dollars = f" and {budget.spent_dollars:.4f} dollars" if budget.dollars is not None else ""
    return f"The budget is spent ({budget.spent:,} tokens{dollars}): the same command with a larger one goes on."


def _shortfalls(options: Options, report: Report) -> list[str]:
    if options.minimum is None:
        return []
    minimum: dict[str, float] = yaml.safe_load(options.minimum.read_text())
    return figures.shortfalls((row for row in report.rows if row.name != figures.ALL), minimum)


if __name__ == "__main__":
    sys.exit(main())
