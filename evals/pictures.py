"""Draw the plots of a report as SVG: the passes by category, and the latency of the turns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from evals.figures import Row
from evals.records import Result
from testing.drawing import new_figure, save

COLOURS: Final = {"pass^1": "#9ccbbd", "pass^k": "#0b6e4f", "latency": "#3b82c4"}
INCHES_PER_ROW: Final = 0.42


def draw(directory: Path, rows: Sequence[Row], results: Sequence[Result], k: int) -> dict[str, Path]:
    """Draw all plots into the directory, and return each by what it shows. Raises LayoutError."""
    if not results:
        return {}
    passes, latency = directory / "passes.svg", directory / "latency.svg"
    save(_passes(rows, k), passes, {"rows": [[row.name, row.pass_1, row.pass_k] for row in rows]})
    seconds = sorted(turn.seconds for result in results for turn in result.turns)
    save(_latency(seconds), latency, {"seconds": seconds})
    return {"Passes by category": passes, "Latency of the turns": latency}


def _passes(rows: Sequence[Row], k: int) -> Figure:
    figure, (axes,) = new_figure(1, INCHES_PER_ROW * len(rows) + 1.2)
    places, shift = range(len(rows)), 0.2 if k > 1 else 0.0
    once, sure = [row.pass_1 for row in rows], [row.pass_k or 0.0 for row in rows]
    axes.barh([at - shift for at in places], once, 0.38, color=COLOURS["pass^1"], label="pass^1")
    if k > 1:
        axes.barh([at + shift for at in places], sure, 0.38, color=COLOURS["pass^k"], label=f"pass^{k}")
    axes.set_yticks(places, [f"{row.name} ({row.cases})" for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the cases")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _latency(seconds: Sequence[float]) -> Figure:
    figure, (axes,) = new_figure(1, 3.0)
    shares = [(at + 1) / len(seconds) for at in range(len(seconds))]
    axes.step([0.0, *seconds], [0.0, *shares], where="post", color=COLOURS["latency"])
    axes.set_xlim(0, max(seconds) * 1.05)
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds")
    axes.set_ylabel("share of the turns answered")
    return figure
