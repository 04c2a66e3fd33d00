"""The page about performance says truly what holds, and `make bench` measures what the issue asks.

The measuring itself is run by CI, as the command that it is: it wants the built artifact and an environment of its own.
"""

import re
from pathlib import Path

import pytest

from bench import report
from bench.figures import Figure, table
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("figure", "holds", "verdict"),
    [
        (Figure("CPU", 9.0, "ms", 9), True, "yes"),
        (Figure("CPU", 12.0, "ms", 9), False, "no, by 3 ms (33%)"),
        (Figure("share", 90.0, "%", 90, is_least=True), True, "yes"),
        (Figure("turns", 99.0, "", 110, is_least=True), False, "no, by 11 (10%)"),
        (Figure("faults", 2, "", 0), False, "no, by 2"),
        (Figure("wall", 12.0, "ms"), None, ""),
    ],
    ids=["under", "over", "reached", "missed", "none allowed", "no target"],
)
def test_a_figure_says_whether_it_holds_and_by_how_much_not(figure: Figure, holds: bool | None, verdict: str) -> None:
    """On either side of its target, the target itself included."""
    assert (figure.holds, figure.verdict) == (holds, verdict)


def test_what_does_not_hold_is_told_apart_with_its_reason() -> None:
    """And what holds is not among it, nor what has no target."""
    missing, holding = (Figure("CPU", cpu, "ms", 9, why="The machine was busy.") for cpu in (12.0, 8.0))
    told = list(report.missed([missing, holding, Figure("size", 1.0)]))
    assert told == ["- **CPU**: by 3 ms (33%). The machine was busy."]


def test_the_table_is_markdown_in_columns() -> None:
    """A row has as many cells as there are headings, each as wide as the widest below it."""
    lines = list(table([Figure("CPU", 12.25, "ms", 9, 8.0).cells]))
    assert lines[2] == "| CPU | 12.2 ms | 8 ms  | at most 9 ms | no, by 3.2 ms (36%) |"
    assert len({len(line) for line in lines}) == 1
    assert re.fullmatch(r"\|( -+ \|){5}", lines[1])


@pytest.mark.parametrize("page", [report.PAGE, ROOT / "docs" / "performance.md"], ids=["template", "page"])
def test_each_gate_named_on_the_page_exists(page: Path) -> None:
    """By the file of the test and its name."""
    gates = re.findall(r"`(test_\w+\.py)::(\w+)`", page.read_text())
    assert len(gates) > 8
    for file, name in gates:
        assert re.search(rf"^(?:class|def) {name}\b", (ROOT / "tests" / file).read_text(), re.MULTILINE), name


def test_the_page_is_of_a_whole_run_and_has_its_pictures() -> None:
    """A short run writes elsewhere."""
    text = (ROOT / "docs" / "performance.md").read_text()
    assert "`make bench` wrote this page on 20" in text
    assert "short run" not in text
    pictures = re.findall(r"!\[.+\]\((performance/\w+\.svg)\)", text)
    assert len(pictures) == 4
    for picture in pictures:
        assert "<svg" in (ROOT / "docs" / picture).read_text()
