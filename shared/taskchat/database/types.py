"""Define the column types, which refuse values that Postgres cannot hold, and what tables declare in their metadata."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, DateTime, Dialect, Interval, func, literal, text
from sqlalchemy import types as sqltypes

from taskchat.text import is_storable

RIGHTS: Final = "rights"
"""Key of a table's `info`: what the runtime role may do with its rows. All four verbs where it is left out."""

EXPIRY: Final = "expiry"
"""Key of a table's `info`: the Expiry of its rows. Without one the rows are never too old."""

NOW: Final = text("clock_timestamp()")


class SafeText(sqltypes.TypeDecorator[str]):
    """Text that is refused before the driver sees it when Postgres cannot hold it.

    pg8000 encodes while it sends: a lone surrogate fails half way, and the next statement on that connection would
    read the previous one's answer, which may be another person's.
    """

    impl = sqltypes.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is not None and not is_storable(value):
            raise ValueError("text with NUL or a lone surrogate")
        return value


class SafeJson(sqltypes.TypeDecorator[Any]):
    """JSON kept as it was written (key order and all), with the same refusal as SafeText."""

    impl = sqltypes.JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if not is_storable(value):
            raise ValueError("JSON with NUL, a lone surrogate or an infinite number")
        return value


Timestamp = DateTime(timezone=True)


def at_least_zero(interval: ColumnElement[timedelta]) -> ColumnElement[timedelta]:
    """Return zero in place of a negative interval: pg8000 reads some of them as positive ones."""
    return func.greatest(interval, literal(timedelta(), Interval))


def runtime_rights(verbs: str) -> dict[str, Any]:
    """Return the table argument that limits what the runtime role may do with the rows, as in SQL's `grant`."""
    return {"info": {RIGHTS: verbs}}


@dataclass(frozen=True)
class Keeper:
    """A row of another table that keeps a row from getting old: the one with the same values in these columns."""

    table: str
    columns: tuple[tuple[str, str], ...]
    """Pairs of names: the column of the row that is kept, and the column of its keeper."""


@dataclass(frozen=True)
class Expiry:
    """When a row is old: each column in `since` is before the limit, the column `when` is true, and no row keeps it."""

    since: tuple[str, ...]
    """Dates or times. The first is indexed and never null. A null in another column counts as old."""
    when: str | None = None
    keeper: Keeper | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of all columns of the row that decide if it is old."""
        kept = [own for own, _ in self.keeper.columns] if self.keeper else []
        return (*self.since, *filter(None, [self.when]), *kept)


def expires(*since: str, when: str | None = None, keeper: Keeper | None = None) -> dict[str, Any]:
    """Return the table argument that lets retention delete old rows. The fields of Expiry explain its parameters."""
    return {"info": {EXPIRY: Expiry(since, when, keeper)}}


def declare(*arguments: dict[str, Any]) -> dict[str, Any]:
    """Return several of these table arguments as one: SQLAlchemy takes only one dictionary."""
    return {"info": {key: value for argument in arguments for key, value in argument["info"].items()}}
