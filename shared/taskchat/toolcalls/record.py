"""Store the record of a tool call, and find out its outcome after a commit that the database did not answer."""

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

_NOT_DONE: Final = "Not done: the connection to the database broke. Nothing was changed. Make the call once more."
_MAY_BE_DONE: Final = (
    "The database did not answer: this may have been done, or may not. Check that before you repeat it."
)

Outcome = Literal["ok", "error"]
Record = dict[str, Any]


@dataclass(frozen=True)
class UnsettledCall:
    """A call with its record: to be stored if the call failed, or to be looked up after a commit without an answer."""

    record: Record
    """The record as the commit would have stored it."""
    described: dict[str, Any]
    """Fields of the call that may be logged."""

    @property
    def text_for_client(self) -> str:
        """Return the client's text while the outcome is unknown. A failed call has failed in any case."""
        return self.record["result"]["error"] if self.record["outcome"] == "error" else _MAY_BE_DONE

    def settle(self, session: Session) -> Record:
        """Return the record of the call, and store a failed one if it has none. The caller must commit.

        A select is not enough: Postgres may still work on the first commit. An insert with the same key waits for it.
        Then it finds the first record, or takes its place, and the first commit can no longer succeed.
        """
        failed = {"outcome": "error", "result": {"error": _NOT_DONE}} if self.record["outcome"] == "ok" else {}
        session.execute(_STORE_RECORD_ONCE, self.record | failed)
        key = {"of_user": self.record["user_id"], "of_turn": self.record["turn_id"], "of_call": self.record["call_id"]}
        return dict(session.execute(_READ_RECORD, key).mappings().one())

    def report(self, outcome: Outcome | Literal["unknown"]) -> None:
        audit_log.report(self.record | {"outcome": outcome}, self.described)
