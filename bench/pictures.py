"""Draw the pictures of docs/performance.md as SVG. The same figures give the same file.

The background is white, so that a page of any colour can show them, and their labels are text. Each file holds its
figures, so that `python -m bench.pictures` can draw it again without a new measurement.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox, BboxBase

from bench.waterfall import Span
from dev import state

COLOURS: Final = {"ours": "#0b6e4f", "floor": "#c8553d", "target": "#6b7280", "part": "#3b82c4"}
DRAWN: Final = state.ROOT / "docs" / "performance"
WIDTH: Final = 8.0
"""Inches."""
LABEL_SHARE: Final = 0.2
"""Share of a panel's width that the longest bar leaves for its label."""
SLACK: Final = 1.0
"""Pixels by which two measurements of a text's width may differ."""

mpl.rcParams.update(
    {
        "svg.hashsalt": "taskchat",  # without it, the ids inside differ between runs
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


class LayoutError(Exception):
    """Raised after saving a picture in which a part is cut off or covered. Names the part."""


def waterfall(path: Path, panels: Mapping[str, Sequence[Span]]) -> None:
    """Draw the panels below each other on one scale, with a bar for every part. Raises LayoutError.

    The longest bar is the whole turn.
    """
    figure, all_axes = _figure(len(panels), 0.32 * sum(map(len, panels.values())) + 0.9 * len(panels))
    for axes, (title, spans) in zip(all_axes, panels.items(), strict=True):
        _bars(axes, spans)
        axes.set_title(title, loc="left", fontsize=10)
    last = max(span.end for spans in panels.values() for span in spans)
    all_axes[-1].set_xlim(0, last / (1 - LABEL_SHARE))  # all panels share the scale
    all_axes[-1].set_xlabel("milliseconds")
    shown = {title: [dataclasses.astuple(span) for span in spans] for title, spans in panels.items()}
    _save(figure, path, {"waterfall": {"panels": shown}})


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
    figure, (axes,) = _figure(1, 3.6)
    _plot(axes, series, targets)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=len(series) + 1)  # inside the axes, the legend would cover a line
    _save(figure, path, {"lines": {"series": series, "labels": labels, "targets": targets}})


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


def _figure(panels: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])


def _save(figure: Figure, path: Path, shown: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Description": json.dumps(shown)})
    if found := list(faults(figure)):
        raise LayoutError(f"{path.name}: {'; '.join(found)}")


def faults(figure: Figure) -> Iterator[str]:
    """Yield each part of a figure that is cut off or covers another."""
    figure.draw_without_rendering()
    parts: list[tuple[str, Any]] = [(f"panel {number}", axes) for number, axes in enumerate(figure.axes, 1)]
    for name, axes in parts:
        shown = [*axes.patches, *axes.lines, *axes.texts]
        yield from (f"{each} leaves {name}" for each in shown if not _holds(axes.bbox, _extent(each)))
        yield from (f"the legend covers {line}" for line in axes.lines if _is_covered(line, axes.get_legend()))
    parts += [("legend", legend) for legend in figure.legends]
    boxes = [(name, part.get_tightbbox()) for name, part in parts]
    yield from (f"{name} leaves the figure" for name, box in boxes if not _holds(figure.bbox, box))
    for (one, its), (other, others) in itertools.combinations(boxes, 2):
        if (shared := Bbox.intersection(its, others)) and min(shared.width, shared.height) > SLACK:
            yield f"{one} covers {other}"


def _extent(part: Artist) -> BboxBase:
    """Return the extent of a part. A line counts without its markers, which may lie half beyond an axis."""
    if isinstance(part, Line2D):
        return part.get_path().get_extents(part.get_transform())
    return part.get_window_extent()


def _is_covered(line: Line2D, legend: Legend | None) -> bool:
    drawn = line.get_transform().transform_path(line.get_path())
    return legend is not None and bool(drawn.intersects_bbox(legend.get_window_extent(), filled=False))


def _holds(outer: BboxBase, inner: BboxBase) -> bool:
    return (
        inner.x0 >= outer.x0 - SLACK
        and inner.y0 >= outer.y0 - SLACK
        and inner.x1 <= outer.x1 + SLACK
        and inner.y1 <= outer.y1 + SLACK
    )


if __name__ == "__main__":
    for picture in sorted(DRAWN.glob("*.svg")):
        redraw(picture, picture)
