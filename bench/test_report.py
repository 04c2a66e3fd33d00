"""Check the page about performance: its verdicts, its links to tests and its pictures.

CI runs the measurement itself with `make bench`, which needs the built artifact and its own environment.
"""

import itertools
import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from bench import pictures, report
from bench.figures import Figure, table
from bench.waterfall import Span
from dev.state import ROOT
from testing import drawing

PICTURES = sorted(pictures.DRAWN.glob("*.svg"))


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
def test_a_figure_shows_if_it_holds_and_by_how_much_it_misses(figure: Figure, holds: bool | None, verdict: str) -> None:
    """The target itself is reached. The target may be a minimum or a maximum."""
    assert (figure.holds, figure.verdict) == (holds, verdict)


def test_a_missed_target_is_listed_with_its_reason() -> None:
    """A reached target is not listed, nor a figure without one."""
    missing, holding = (Figure("CPU", cpu, "ms", 9, why="The machine was busy.") for cpu in (12.0, 8.0))
    listed = list(report.missed([missing, holding, Figure("size", 1.0)]))
    assert listed == ["- **CPU**: by 3 ms (33%). The machine was busy."]


def test_the_table_is_markdown_in_columns() -> None:
    """A row has as many cells as there are headings, each as wide as the widest below it."""
    lines = list(table([Figure("CPU", 12.25, "ms", 9, 8.0).cells]))
    assert lines[2] == "| CPU | 12.2 ms | 8 ms  | at most 9 ms | no, by 3.2 ms (36%) |"
    assert len({len(line) for line in lines}) == 1
    assert re.fullmatch(r"\|( -+ \|){5}", lines[1])


@pytest.mark.parametrize("page", [report.PAGE, ROOT / "docs" / "performance.md"], ids=["template", "page"])
def test_each_test_named_on_the_page_exists(page: Path) -> None:
    """The page gives its file and its name."""
    tests = re.findall(r"`(test_\w+\.py)::(\w+)`", page.read_text())
    assert len(tests) > 8
    for file, name in tests:
        assert re.search(rf"^(?:class|def) {name}\b", (ROOT / "tests" / file).read_text(), re.MULTILINE), name


def test_the_page_is_of_a_whole_run_and_has_its_pictures() -> None:
    """A short run writes elsewhere."""
    text = (ROOT / "docs" / "performance.md").read_text()
    assert "`make bench` wrote this page on 20" in text
    assert "short run" not in text
    shown = re.findall(r"!\[.+\]\(performance/(\w+\.svg)\)", text)
    assert sorted(shown) == [path.name for path in PICTURES]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_a_picture_of_the_page_is_whole(picture: Path, tmp_path: Path) -> None:
    """Drawn again from its own figures, it has the same text, and no part is cut off or covered."""
    drawn = tmp_path / picture.name
    pictures.redraw(picture, drawn)
    assert pictures.held(drawn) == pictures.held(picture)
    assert texts(drawn) == texts(picture)


def texts(picture: Path) -> list[str]:
    """Return the texts in a picture."""
    return re.findall(r"<text[^>]*>(.*?)</text>", picture.read_text(), re.DOTALL)


def spans(*ends: float) -> list[Span]:
    """Return the whole turn, and its parts in sequence."""
    parts = itertools.pairwise((0.0, *ends))
    return [Span("the whole turn", 0.0, ends[-1]), *(Span(f"until {end:g}", begin, end) for begin, end in parts)]


@pytest.mark.parametrize(
    "panels",
    [
        {"short": spans(1, 2), "long": spans(10, 500)},
        {"long": spans(10, 500), "short": spans(1, 2)},
        {"one": spans(0.001)},
        {"slow": spans(1, 1_999_999)},
        {str(number): spans(*range(1, 2 + number)) for number in range(6)},
    ],
    ids=["the second longer", "the first longer", "tiny", "huge", "many"],
)
def test_bars_and_their_labels_lie_in_their_panel(panels: dict[str, list[Span]], tmp_path: Path) -> None:
    """Panels share the scale of the longest."""
    pictures.waterfall(tmp_path / "picture.svg", panels)


@pytest.mark.parametrize("first", [1.0, 1_000.0, 1_000_000.0])
def test_lines_and_targets_lie_in_their_axes(first: float, tmp_path: Path) -> None:
    """The legend covers none of them, wherever they begin. A target may lie above all of them."""
    series = {name: {1: first, 100: 2.0} for name in ("ours", "floor", "ours, 2 processes", "floor, 2 processes")}
    pictures.lines(tmp_path / "picture.svg", series, ("clients", "turns per second"), [(100, 2 * first)])


def panel() -> tuple[Drawing, Axes]:
    """Return a figure with a bar from 0 to 2 and a falling line."""
    figure = Drawing()
    axes = figure.subplots()
    axes.barh([0], [2.0])
    axes.plot([0, 2], [1.0, 0.0], label="line")
    return figure, axes


def test_a_part_that_is_cut_off_or_covered_is_found() -> None:
    """A bar or a label beyond the panel, a legend on a line, a text beyond the figure, one panel on another."""
    assert list(drawing.faults(panel()[0])) == []
    found = []
    for spoil in (
        lambda axes: axes.set_xlim(0, 1),
        lambda axes: axes.annotate("label", (2.0, 0)),
        lambda axes: axes.legend(loc="upper left"),
        lambda axes: axes.set_ylabel("y", labelpad=400),
        lambda axes: axes.figure.add_axes((0.5, 0.5, 0.4, 0.4)),
    ):
        figure, axes = panel()
        spoil(axes)
        found.append(re.sub(r"\(.*\)", "", next(drawing.faults(figure))))
    assert found == [
        "Rectangle leaves panel 1",
        "Annotation leaves panel 1",
        "the legend covers Line2D",
        "panel 1 leaves the figure",
        "panel 1 covers panel 2",
    ]
