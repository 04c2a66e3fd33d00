"""What goes over the wire of the chat API."""

from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from taskchat.text import plain_text
from taskchat.toolcalls.models import ToolCall

MAX_MESSAGE: Final = 4_000
"""Characters of what a person says at once."""


@lru_cache(maxsize=1)
def _timezones() -> frozenset[str]:
    """The names in the tzdata package: the same here and wherever this runs, whatever a machine has of its own."""
    return frozenset((files("tzdata") / "zones").read_text().split())


def _known_timezone(name: str) -> str:
    if name not in _timezones():
        raise ValueError("not an IANA time zone")
    return name


def _plain_uuid(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    try:
        return parse(value)
    except ValidationError:  # whose own words quote the character they stumbled over
        raise ValueError("not a UUID") from None


class ChatRequest(BaseModel):
    """One message of a person."""

    model_config = ConfigDict(extra="forbid")

    message: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_MESSAGE),
        plain_text(MAX_MESSAGE),
    ]
    conversation_id: Annotated[UUID, WrapValidator(_plain_uuid)] | None = None
    timezone: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+/-]+$", max_length=64), AfterValidator(_known_timezone)]
        | None
    ) = Field(default=None, description="IANA name, for words such as today; UTC if left out")


class ToolCallView(BaseModel):
    """One tool call of the turn, failed or not. `arguments` are what the model sent."""

    model_config = ConfigDict(from_attributes=True)

    call_id: str
    tool: str
    arguments: dict[str, Any]
    outcome: Literal["ok", "error"]
    result: dict[str, Any]
    duration_ms: float


class ChatResponse(BaseModel):
    """The agent's reply, with every tool call that was made for it."""

    conversation_id: UUID
    turn_id: UUID
    response: str
    tool_calls: list[ToolCallView]


def view_calls(calls: list[ToolCall]) -> list[ToolCallView]:
    """The recorded calls as the person may see them."""
    return [ToolCallView.model_validate(call) for call in calls]


class Health(BaseModel):
    """That the process answers."""

    status: Literal["ok"]


class Problem(BaseModel):
    """What went wrong (RFC 9457). `type` is stable; no text in it comes from an exception or from the request."""

    type: Annotated[str, StringConstraints(pattern="^urn:taskchat:problem:")]
    title: str
    status: int
    detail: str = ""


class Fault(BaseModel):
    """A field at fault, and why. What it held is not repeated."""

    field: str
    message: str


class FieldProblem(Problem):
    """A request that does not fit the contract, with the fields at fault if there are any."""

    fields: list[Fault] = []


class TurnProblem(Problem):
    """A turn that began and was interrupted, with the tool calls that were made for it."""

    conversation_id: UUID | None = None
    turn_id: UUID | None = None
    tool_calls: list[ToolCallView] | None = Field(
        default=None,
        description="Left out where no turn began, and where it is unknown whether a call took effect: the database "
        "could not be asked. The same request with its Idempotency-Key goes on from what did.",
    )
