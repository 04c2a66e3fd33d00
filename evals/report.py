"""Write the report of a run: a table for the terminal, and a page in Markdown with plots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evals import figures, pictures
from evals.budget import Prices
from evals.figures import Comparison, Row
from evals.records import Result, Run

PAGE: Final = "report.md"
MOST_FAILURES: Final = 100
"""Failed cases that the page lists."""


@dataclass(frozen=True)
class Report:
    """A run's figures, and its comparison with an earlier run."""

    run: Run
    results: list[Result]
    rows: list[Row]
    expected: int
    """The attempts of a whole run."""
    earlier: Run | None
    comparison: Comparison | None

    @classmethod
    def make(cls, run: Run, expected: int, prices: Prices, earlier: Run | None) -> "Report":
        """Return the report of the results so far."""
        results = run.results()
        rows = figures.rows(results, run.settings().repeat, prices)
        comparison = figures.compare(earlier.results(), results) if earlier else None
        return cls(run, results, rows, expected, earlier, comparison)

    def headline(self) -> str:
        """Return in one line what was measured."""
        settings = self.run.settings()
        done = f"{len(self.results):,} of {self.expected:,} attempts"
        return f"{settings.model} at {settings.endpoint} ({settings.api}), {done}, run {self.run.name}"

    def table(self) -> Iterator[str]:
        """Yield the lines of the table, which are Markdown too."""
        k = self.run.settings().repeat
        money = any(row.dollars is not None for row in self.rows)
        cells = [_header(k, money), *(_cells(row, k, money) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        yield _line(cells[0], widths)
        yield "|" + "|".join("-" * (width + 1) + (":" if at else "-") for at, width in enumerate(widths)) + "|"
        yield from (_line(row, widths) for row in cells[1:])

    def changes(self) -> Iterator[str]:
        """Yield what became better and worse since the earlier run."""
        if self.earlier is None or self.comparison is None:
            yield "There is no earlier run to compare with."
            return
        found = self.comparison
        model = self.earlier.settings().model
        yield f"Compared with run {self.earlier.name} ({model}), {found.in_common} cases in common:"
        for verdict, changes in (("better", found.better), ("worse", found.worse)):
            yield f"- {verdict}: {len(changes)}"
            yield from (f"  - {name}: {then:.0%} before, {now:.0%} now" for name, then, now in changes)

    def failures(self) -> Iterator[str]:
        """Yield each case that failed, with its first failure."""
        failed = [(name, of) for name, of in figures.by_case(self.results).items() if not all(r.passed for r in of)]
        for name, of_case in sorted(failed)[:MOST_FAILURES]:
            first = next(result for result in of_case if not result.passed)
            passed = sum(result.passed for result in of_case)
            yield f"### {name}: {passed} of {len(of_case)} passed\n"
            yield from _failure(first)
            yield ""

    def write(self) -> Path:
        """Write the page and its plots into the run's directory, and return the page."""
        plots = pictures.draw(self.run.directory, self.rows, self.results, self.run.settings().repeat)
        page = self.run.directory / PAGE
        shown = "\n".join(f"![{name}]({path.name})\n" for name, path in plots.items())
        parts = ["# Evals\n", f"{self.headline()}.\n", *self.table(), "", shown, "## Changes\n", *self.changes()]
        parts += ["", "## Failures\n", *(list(self.failures()) or ["None."])]
        page.write_text("\n".join(parts).rstrip() + "\n")
        return page


def _header(k: int, money: bool) -> list[str]:
    names = ["Category", "cases", "pass^1", *([f"pass^{k}"] if k > 1 else []), "wrong calls", "needless calls"]
    return [*names, "claimed, not done", "errors", "tokens", *(["dollars"] if money else []), "p50 s", "p95 s"]


def _cells(row: Row, k: int, money: bool) -> list[str]:
    counts = [row.wrong_calls, row.needless_calls, row.claims, row.errors, row.tokens]
    sure = ["" if row.pass_k is None else f"{row.pass_k:.3f}"] if k > 1 else []
    dollars = [f"{row.dollars:.4f}" if row.dollars is not None else ""] if money else []
    seconds = [f"{row.p50:.2f}", f"{row.p95:.2f}"]
    return [
        row.name,
        str(row.cases),
        f"{row.pass_1:.3f}",
        *sure,
        *(f"{count:,}" for count in counts),
        *dollars,
        *seconds,
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "| " + " | ".join([first.strip().ljust(widths[0]), *others]) + " |"


def _failure(result: Result) -> Iterator[str]:
    for turn in result.turns:
        calls = ", ".join(f"{call.tool} {call.outcome}" for call in turn.calls) or "no call"
        yield f"- {_quoted(turn.message)} → {_quoted(turn.reply)} ({turn.status}, {calls})"
    yield from (f"- **{name}**: {_escaped(reason)}" for name, reason in result.problems.items())


def _quoted(text: str) -> str:
    return f"“{_escaped(text)}”"


def _escaped(text: str) -> str:
    """Return the text in one line, shortened, in which nothing is markup."""
    line = " ".join(text.split())[:300]
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>#|!" else each for each in line)
