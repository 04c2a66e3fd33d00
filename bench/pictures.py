"""Draw the pictures of docs/performance.md as SVG. The same figures give the same file.

The background is white, so that a page of any colour can show them, and their labels are text. Each file holds its
figures, so that `python -m bench.pictures` can draw it again without a new measurement.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes

from bench.waterfall import Span
from dev import state
from testing.drawing import new_figure, save

COLOURS: Final = {"ours": "#0b6e4f", "floor": "#c8553d", "target": "#6b7280", "part": "#3b82c4"}
DRAWN: Final = state.ROOT / "docs" / "performance"
LABEL_SHARE: Final = 0.2
"""Share of a panel's width that the longest bar leaves for its label."""


def waterfall(path: Path, panels: Mapping[str, Sequence[Span]]) -> None:
    """Draw the panels below each other on one scale, with a bar for every part. Raises LayoutError.

    The longest bar is the whole turn.
    """
    figure, all_axes = new_figure(len(panels), 0.32 * sum(map(len, panels.values())) + 0.9 * len(panels))
    for axes, (title, spans) in zip(all_axes, panels.items(), strict=True):
        _bars(axes, spans)
        axes.set_title(title, loc="left", fontsize=10)
    last = max(span.end for spans in panels.values() for span in spans)
    all_axes[-1].set_xlim(0, last / (1 - LABEL_SHARE))  # all panels share the scale
    all_axes[-1].set_xlabel("milliseconds")
    shown = {title: [dataclasses.astuple(span) for span in spans] for title, spans in panels.items()}
    save(figure, path, {"waterfall": {"panels": shown}})


def _bars(axes: Axes, spans: Sequence[Span]) -> None:
    places = range(len(spans))
    lengths = [span.end - span.start for span in spans]
    whole = max(span.end for span in spans)
    colours = [COLOURS["ours" if length == whole else "part"] for length in lengths]
    axes.barh(places, lengths, left=[span.start for span in spans], color=colours)
    for place, span, length in zip(places, spans, lengths, strict=True):
        label = f"{length:,.{0 if length >= 100 else 1}f} ms"
        axes.annotate(label, (span.end, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [span.name for span in spans])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def lines(
    path: Path,
    series: Mapping[str, Mapping[int, float]],
    labels: tuple[str, str],
    targets: Sequence[tuple[int, float]] = (),
) -> None:
    """Draw a line for each series over its numbers, spaced evenly, and a mark for each target.

    Raises LayoutError.
    """
    figure, (axes,) = new_figure(1, 3.6)
    _plot(axes, series, targets)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=len(series) + 1)  # inside the axes, the legend would cover a line
    save(figure, path, {"lines": {"series": series, "labels": labels, "targets": targets}})


def _plot(axes: Axes, series: Mapping[str, Mapping[int, float]], targets: Sequence[tuple[int, float]]) -> None:
    numbers = sorted({number for values in series.values() for number in values})
    for name, values in series.items():
        whose, *variant = name.split(", ")
        style, colour = "--" if variant else "-", COLOURS[whose.split()[0]]
        at = [numbers.index(number) for number in values]
        axes.plot(at, list(values.values()), marker="o", ls=style, color=colour, label=name, clip_on=False)
    if targets:
        at, heights = [numbers.index(number) for number, _ in targets], [height for _, height in targets]
        axes.plot(at, heights, ls="none", marker="_", ms=22, mew=2, color=COLOURS["target"], label="target")
    axes.set_xticks(range(len(numbers)), [f"{number:,}" for number in numbers])


def redraw(source: Path, path: Path) -> None:
    """Draw a picture again from the figures that it holds. Raises LayoutError."""
    [(kind, shown)] = held(source).items()
    if kind == "waterfall":
        waterfall(path, {title: [Span(*span) for span in spans] for title, spans in shown["panels"].items()})
    else:
        series = {name: {int(number): value for number, value in of.items()} for name, of in shown["series"].items()}
        lines(path, series, shown["labels"], shown["targets"])


def held(path: Path) -> dict[str, Any]:
    """Return the figures that a picture holds, by kind."""
    [text] = re.findall(r"<dc:description>(.*?)</dc:description>", path.read_text(), re.DOTALL)
    figures: dict[str, Any] = json.loads(unescape(text))
    return figures


if __name__ == "__main__":
    for picture in sorted(DRAWN.glob("*.svg")):
        redraw(picture, picture)
