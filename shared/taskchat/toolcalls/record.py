"""The record of a tool call, and what to do when the database does not answer the commit that keeps it."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session

from taskchat.toolcalls import audit_log
from taskchat.toolcalls.models import TOOL_CALL

STORE_RECORD: Final = insert(TOOL_CALL)
_STORE_RECORD_ONCE: Final = insert(TOOL_CALL).on_conflict_do_nothing()
_READ_RECORD: Final = select(TOOL_CALL).where(
    TOOL_CALL.c.user_id == bindparam("of_user"),
    TOOL_CALL.c.turn_id == bindparam("of_turn"),
    TOOL_CALL.c.call_id == bindparam("of_call"),
)

_NOT_TAKEN: Final = "Not done: the connection to the database broke. Nothing was changed. Make the call once more."
_MAY_BE_DONE: Final = (
    "The database did not answer: this may have been done, or may not. Look whether it was before you repeat it."
)

Outcome = Literal["ok", "error"]
Record = dict[str, Any]


@dataclass(frozen=True)
class UnsettledCall:
    """A call whose commit the database did not answer."""

    record: Record
    """As it would be if the commit took effect."""
    described: dict[str, Any]
    """What may be logged of it."""

    @property
    def told(self) -> str:
        """What a client is told for as long as nothing else is known. A failed call has failed in any case."""
        return self.record["result"]["error"] if self.record["outcome"] == "error" else _MAY_BE_DONE

    def settle(self, session: Session) -> Record:
        """Make certain how the call ended, and return its record. The transaction must commit for that to hold.

        To look for the record would not do: the database may still be at work on the commit. The insert of another
        record under the same key waits for that. Then it finds the first one, or takes its place for good.
        """
        failed = {"outcome": "error", "result": {"error": _NOT_TAKEN}} if self.record["outcome"] == "ok" else {}
        session.execute(_STORE_RECORD_ONCE, self.record | failed)
        key = {"of_user": self.record["user_id"], "of_turn": self.record["turn_id"], "of_call": self.record["call_id"]}
        return dict(session.execute(_READ_RECORD, key).mappings().one())

    def report(self, outcome: Outcome | Literal["unknown"]) -> None:
        """Write the call's audit line."""
        audit_log.report(self.record | {"outcome": outcome}, self.described)
