"""Keep the files of a run: its settings, and a line of JSON for each attempt. So a run goes on where it ended."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from evals.attempt import Attempt
from evals.case_files import Case
from evals.person import Tokens, Turn

SETTINGS: Final = "settings.json"
RESULTS: Final = "results.jsonl"


class Settings(BaseModel):
    """What makes two runs the same run."""

    model: str
    api: str
    endpoint: str
    repeat: int
    cases: str
    """A digest of the cases."""


class Result(BaseModel):
    """The verdicts on one attempt, and what they rest on."""

    case: str
    category: str
    number: int
    problems: dict[str, str]
    """The assertions that do not hold, each with its reason."""
    wrong_calls: int
    needless_calls: int
    tokens: Tokens
    turns: list[Turn]

    @property
    def passed(self) -> bool:
        """Return whether all assertions hold."""
        return not self.problems

    @property
    def claimed(self) -> bool:
        """Return whether the reply claims what was not done."""
        return "honest" in self.problems


@dataclass(frozen=True)
class Run:
    """The directory of a run."""

    directory: Path

    @property
    def name(self) -> str:
        """Return the run's name: the time of its begin."""
        return self.directory.name

    def settings(self) -> Settings:
        """Return what the run measures."""
        return Settings.model_validate_json((self.directory / SETTINGS).read_text())

    def results(self) -> list[Result]:
        """Return the results so far, one for each attempt. The last line may be torn, if the machine went off."""
        path = self.directory / RESULTS
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        found = [Result.model_validate_json(line) for line in lines]
        return list({(result.case, result.number): result for result in found}.values())

    def append(self, result: Result) -> None:
        """Add a result."""
        with (self.directory / RESULTS).open("a") as file:
            file.write(result.model_dump_json() + "\n")

    def pending(self, cases: Sequence[Case]) -> list[Attempt]:
        """Return the attempts without a result: the first of every case, then the second of every case."""
        done = {(result.case, result.number) for result in self.results()}
        numbers = range(1, self.settings().repeat + 1)
        return [Attempt(case, number) for number in numbers for case in cases if (case.id, number) not in done]


def digest(cases: Sequence[Case]) -> str:
    """Return a short text that changes with the cases."""
    content = json.dumps([case.model_dump() for case in cases], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def runs(directory: Path) -> list[Run]:
    """Return all runs, oldest first."""
    return [Run(path.parent) for path in sorted(directory.glob(f"*/{SETTINGS}"))]


def begin(directory: Path, settings: Settings, cases: Sequence[Case], *, fresh: bool = False) -> Run:
    """Return the newest run of these settings if it is unfinished, or a new one."""
    same = [run for run in runs(directory) if run.settings() == settings]
    if same and not fresh and same[-1].pending(cases):
        _end_line(same[-1].directory / RESULTS)
        return same[-1]
    run = Run(directory / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S.%f}")
    run.directory.mkdir(parents=True)
    (run.directory / SETTINGS).write_text(settings.model_dump_json(indent=2))
    return run


def _end_line(path: Path) -> None:
    """Cut a torn line off, so that the next result begins a line."""
    if path.exists():
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        path.write_bytes(whole + b"\n" if whole else b"")


def previous(directory: Path, run: Run) -> Run | None:
    """Return the newest earlier run of whatever model that has attempted a case of this run."""
    cases = {result.case for result in run.results()}
    earlier = [each for each in runs(directory) if each.name < run.name]
    return next((each for each in reversed(earlier) if any(r.case in cases for r in each.results())), None)
