"""Define the column types, which refuse values that Postgres cannot hold, and the rights of the runtime role."""

from typing import Any, Final

from sqlalchemy import DateTime, Dialect, text
from sqlalchemy import types as sqltypes

from taskchat.text import is_storable

RIGHTS: Final = "rights"
"""Key of a table's `info`: what the runtime role may do with its rows. All four verbs where it is left out."""

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


def runtime_rights(verbs: str) -> dict[str, Any]:
    """Return the table argument that limits what the runtime role may do with the rows, as in SQL's `grant`."""
    return {"info": {RIGHTS: verbs}}
