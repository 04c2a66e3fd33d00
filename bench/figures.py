"""Compare measured figures with their targets."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

HEADINGS: Final = ("", "ours", "floor", "target", "reached")


@dataclass(frozen=True)
class Figure:
    """One figure of ours, with the floor's figure and the target, if any."""

    name: str
    ours: float
    unit: str = ""
    target: float | None = None
    floor: float | None = None
    is_least: bool = False
    """True for a minimum, False for a maximum."""
    why: str = ""
    """The reason for a missed target."""

    @property
    def holds(self) -> bool | None:
        """Return True if the target is reached, or None without a target."""
        if self.target is None:
            return None
        return self.ours >= self.target if self.is_least else self.ours <= self.target

    @property
    def verdict(self) -> str:
        """Return the result in words: yes, or by how much the target is missed."""
        if self.target is None or self.holds:
            return "" if self.target is None else "yes"
        missing = abs(self.ours - self.target)
        return f"no, by {self._written(missing)}" + (f" ({missing / self.target:.0%})" if self.target else "")

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        bound = (
            "" if self.target is None else f"{'at least' if self.is_least else 'at most'} {self.target:g}{self._unit}"
        )
        floor = "" if self.floor is None else self._written(self.floor)
        return self.name, self._written(self.ours), floor, bound, self.verdict

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def _written(self, value: float) -> str:
        digits = 0 if value == round(value) or value >= 100 else 1 if self.unit or value >= 10 else 2
        return f"{value:,.{digits}f}{self._unit}"


def table(rows: Iterable[tuple[str, ...]], headings: tuple[str, ...] = HEADINGS) -> Iterator[str]:
    """Yield the rows as a Markdown table with aligned columns, readable in a terminal too."""
    cells = [headings, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    bars = ("-" * width for width in widths)
    for row in (headings, tuple(bars), *cells[1:]):
        yield "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
