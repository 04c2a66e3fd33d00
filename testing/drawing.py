"""Draw pictures as SVG that show the same figures in the same way, and find parts that are cut off or covered.

The background is white, so that a page of any colour can show them, and their labels are text.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox, BboxBase

WIDTH: Final = 8.0
"""Inches."""
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


def new_figure(panels: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with panels below each other, which share their horizontal axis."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])


def save(figure: Figure, path: Path, shown: Mapping[str, Any]) -> None:
    """Write the picture, with the figures that it shows in its description. Raises LayoutError."""
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
