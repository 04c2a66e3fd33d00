"""What was measured, beside what was to be reached."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

HEADINGS: Final = ("", "ours", "floor", "target", "holds")


@dataclass(frozen=True)
class Figure:
    """One figure of ours, beside the floor's where it has one and the target where there is one."""

    name: str
    ours: float
    unit: str = ""
    target: float | None = None
    floor: float | None = None
    is_least: bool = False
    """Whether the target is to be reached, and not to be kept under."""
    why: str = ""
    """What it is that does not hold, or why, if so."""

    @property
    def holds(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.ours >= self.target if self.is_least else self.ours <= self.target

    @property
    def verdict(self) -> str:
        """In words: by how much, where it is not."""
        if self.target is None or self.holds:
            return "" if self.target is None else "yes"
        missing = abs(self.ours - self.target)
        return f"no, by {self._written(missing)}" + (f" ({missing / self.target:.0%})" if self.target else "")

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
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
    """The rows as Markdown, in columns that a person can read in a terminal too."""
    cells = [headings, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    bars = ("-" * width for width in widths)
    for row in (headings, tuple(bars), *cells[1:]):
        yield "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
