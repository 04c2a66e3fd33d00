"""The pictures of docs/performance.md, as SVG that comes out the same when the figures do.

On white, so that they can be read on a page of any colour, and with their words as text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.waterfall import Span

COLOURS: Final = {"ours": "#0b6e4f", "floor": "#c8553d", "target": "#6b7280", "part": "#3b82c4"}
WIDTH: Final = 8.0
"""Inches."""

mpl.rcParams.update(
    {
        "svg.hashsalt": "taskchat",  # else the ids inside differ from run to run
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e5e7eb",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)


def waterfall(path: Path, panels: Mapping[str, Sequence[Span]]) -> None:
    """One panel below the other, each with a bar for every part; one that spans all others is the whole."""
    figure, all_axes = _figure(len(panels), 0.32 * sum(map(len, panels.values())) + 0.9 * len(panels))
    for axes, (title, spans) in zip(all_axes, panels.items(), strict=True):
        places = range(len(spans))
        longest = max(span.end for span in spans)
        colours = [COLOURS["ours" if span.end - span.start == longest else "part"] for span in spans]
        axes.barh(places, [span.end - span.start for span in spans], left=[span.start for span in spans], color=colours)
        for place, span in zip(places, spans, strict=True):
            label = f"{span.end - span.start:,.{0 if span.end - span.start >= 100 else 1}f} ms"
            axes.annotate(label, (span.end, place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, [span.name for span in spans])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_title(title, loc="left", fontsize=10)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
    all_axes[-1].set_xlabel("milliseconds")
    _save(figure, path)


def lines(
    path: Path,
    series: Mapping[str, Mapping[int, float]],
    labels: tuple[str, str],
    targets: Sequence[tuple[int, float]] = (),
) -> None:
    """A line for each series over the numbers it has, spaced evenly, and a mark for each target."""
    figure, (axes,) = _figure(1, 3.6)
    numbers = sorted({number for values in series.values() for number in values})
    for name, values in series.items():
        at = [numbers.index(number) for number in values]
        whose, *variant = name.split(", ")
        style = "--" if variant else "-"
        axes.plot(at, list(values.values()), marker="o", linestyle=style, color=COLOURS[whose.split()[0]], label=name)
    if targets:
        at, heights = [numbers.index(number) for number, _ in targets], [height for _, height in targets]
        axes.plot(at, heights, linestyle="none", marker="_", ms=22, mew=2, color=COLOURS["target"], label="target")
    axes.set_xticks(range(len(numbers)), [f"{number:,}" for number in numbers])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    _save(figure, path)


def _figure(panels: int, height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(panels, sharex=True, squeeze=False)[:, 0]


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
