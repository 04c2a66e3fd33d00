"""Read the records of tool calls as the auditor's role, which sees no text of a person."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine, and_, bindparam, func, select, tuple_

from operations.log_source import OperatorError
from operations.options import local_file
from taskchat.database.engine import create_engine_for
from taskchat.personal_data.models import ERASED_CALL
from taskchat.settings import AuditSettings, load
from taskchat.tasks import toolset
from taskchat.toolcalls.models import TOOL_CALL, without_made_up_name

Row = dict[str, Any]
Kind = tuple[str, str, str]
"""Entry point, tool and outcome of a call."""

PAGE: Final = 5_000
WINDOW: Final = timedelta(hours=1)
"""Time of the rows that one statement sorts: the index finds rows by their time, and does not sort them."""

SECONDS: Final = 30.0
_ORDER: Final = ("created_at", "user_id", "turn_id", "call_id")
_TOOL: Final = without_made_up_name(TOOL_CALL.c.tool).label("tool")
_COLUMNS: Final = tuple(
    TOOL_CALL.c[name]
    for name in ("user_id", "turn_id", "call_id", "conversation_id", "request_id", "door", "outcome", "duration_ms")
)


@dataclass(frozen=True)
class CallRecords:
    """The records of all persons' calls."""

    engine: Engine

    def read(self, since: datetime, until: datetime, **filters: str) -> Iterator[Row]:
        """Return the records from `since`, before `until`, in order of time, with one field of each filter's name."""
        window = since
        while window < until:
            end = min(window + WINDOW, until)
            yield from self._read_window(window, end, filters)
            window = end

    def _read_window(self, since: datetime, until: datetime, filters: dict[str, str]) -> Iterator[Row]:
        place: tuple[Any, ...] | None = None
        while True:
            page = self._read_page(since, until, filters, place)
            yield from page
            if len(page) < PAGE:
                return
            place = tuple(page[-1][name] for name in _ORDER)

    def _read_page(
        self, since: datetime, until: datetime, filters: dict[str, str], place: tuple[Any, ...] | None
    ) -> list[Row]:
        created = TOOL_CALL.c.created_at
        conditions = [created >= since, created < until]
        conditions += [(_TOOL if name == "tool" else TOOL_CALL.c[name]) == value for name, value in filters.items()]
        order = [TOOL_CALL.c[name] for name in _ORDER]
        if place:
            conditions.append(
                tuple_(*order)
                > tuple_(*(bindparam(None, value, c.type) for c, value in zip(order, place, strict=True)))
            )
        statement = select(*_COLUMNS, _TOOL, created).where(and_(*conditions)).order_by(*order).limit(PAGE)
        with self.engine.begin() as connection:
            found = connection.execute(statement, {"tool_names": toolset.tool_names}).mappings()
            return [dict(row) for row in found]

    def has_earlier(self, user_id: str, when: datetime) -> bool:
        """Return whether the person has a record from before that time. An erasure since would have erased it."""
        earlier = select(TOOL_CALL.c.call_id).where(TOOL_CALL.c.user_id == user_id, TOOL_CALL.c.created_at < when)
        with self.engine.begin() as connection:
            return connection.execute(earlier.limit(1)).first() is not None

    def count_erased(self, since: datetime, until: datetime) -> Counter[Kind]:
        """Return the number of erased calls of each kind, of all days from `since` to `until`."""
        kind = (ERASED_CALL.c.door, ERASED_CALL.c.tool, ERASED_CALL.c.outcome)
        days = ERASED_CALL.c.made_on.between(since.date(), until.date())
        with self.engine.begin() as connection:
            found = connection.execute(select(*kind, func.count()).where(days).group_by(*kind))
            return Counter({(door, tool, outcome): count for door, tool, outcome, count in found})


@contextmanager
def open_records(*, is_local: bool) -> Iterator[CallRecords]:
    """Open the records at AUDIT_DATABASE_URL or, on this machine, those of the running `make dev`, for the block.

    Raises OperatorError, SettingsError.
    """
    if os.environ.get("AUDIT_DATABASE_URL") or not is_local:
        url = load(AuditSettings).audit_database_url.get_secret_value()
    else:
        try:
            url = local_file("audit.url").read_text()
        except FileNotFoundError:
            raise OperatorError("Set AUDIT_DATABASE_URL to the auditor's role, or start make dev.") from None
    engine = create_engine_for(lambda: url, SECONDS)
    try:
        yield CallRecords(engine)
    finally:
        engine.dispose()
