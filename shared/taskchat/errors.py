"""The errors of this program, with the HTTP status and the texts for the client.

The texts are fixed: no exception text and nothing of the request reaches a client.
"""

from typing import Any, ClassVar


class TaskchatError(Exception):
    """Base of all expected errors. `slug` ends the problem type's URI, and its meaning never changes."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong on our side."

    def __init__(self, detail: str | None = None, *, retry_after: int | None = None) -> None:
        """Add a fixed sentence, `detail`, to the title. `retry_after` is in whole seconds."""
        super().__init__(detail or self.title)
        self.detail = detail
        self.retry_after = retry_after
        self.members: dict[str, Any] = {}
        """More members of the problem: the fields at fault, or the state of the turn."""


class Malformed(TaskchatError):
    """Raised when an event is not an HTTP request of API Gateway."""

    status, slug, title = 400, "malformed", "This is not a request."


class NotJson(TaskchatError):
    """Raised when the body is not JSON text in UTF-8."""

    status, slug, title = 400, "not-json", "The body is not JSON."


class Unauthenticated(TaskchatError):
    """Raised when there is no token, or an invalid one."""

    status, slug, title = 401, "unauthenticated", "A valid bearer token is needed."


class Forbidden(TaskchatError):
    """Raised when the path and the token name different users."""

    status, slug, title = 403, "forbidden", "This path belongs to another user."


class OriginRefused(TaskchatError):
    """Raised when a browser sends a request of another site's page, and that site is not allowed."""

    status, slug, title = 403, "origin-refused", "Pages of this origin may not call this."


class NotFound(TaskchatError):
    """Raised for an unknown path and for a conversation of another user: the client cannot tell the two apart."""

    status, slug, title = 404, "not-found", "There is nothing here."


class MethodNotAllowed(TaskchatError):
    """Raised when the path is known, but not the method."""

    status, slug, title = 405, "method-not-allowed", "This method is not allowed here."


class NotAcceptable(TaskchatError):
    """Raised when the client does not accept JSON."""

    status, slug, title = 406, "not-acceptable", "The answer is JSON, which this request does not accept."


class TurnInProgress(TaskchatError):
    """Raised when another turn holds the lease of the conversation."""

    status, slug, title = 409, "turn-in-progress", "A turn is still running in this conversation."


class BodyTooLarge(TaskchatError):
    """Raised when the body is over the limit, before it is parsed."""

    status, slug, title = 413, "body-too-large", "The body is larger than 32 KiB."


class UnsupportedMediaType(TaskchatError):
    """Raised when the body is not declared as application/json."""

    status, slug, title = 415, "unsupported-media-type", "The body must be application/json."


class Misdirected(TaskchatError):
    """Raised when the Host header names another host."""

    status, slug, title = 421, "misdirected", "This host is not served here."


class InvalidInput(TaskchatError):
    """Raised when a field is missing, unknown or out of range."""

    status, slug, title = 422, "invalid-input", "The request does not fit the contract."

    def __init__(self, fields: list[dict[str, str]]) -> None:
        """`fields` has the name of each field at fault and the reason, never the value."""
        super().__init__()
        self.members = {"fields": fields}


class KeyReused(TaskchatError):
    """Raised when an Idempotency-Key is used again with another body."""

    status, slug, title = 422, "idempotency-key-reused", "This Idempotency-Key was used for another request."


class TooManyRequests(TaskchatError):
    """Raised when a user has reached a limit. `retry_after` says when it ends."""

    status, slug, title = 429, "too-many-requests", "This user has reached a limit."


class ModelFailed(TaskchatError):
    """Raised when the model gave no usable answer. The turn is kept, with the tool calls that took effect."""

    status, slug, title = 502, "model-failed", "The model failed to answer."


class Unavailable(TaskchatError):
    """Base of temporary errors: a service that this one needs cannot be reached."""

    status, slug, title = 503, "unavailable", "The service is not available right now."


class DatabaseUnavailable(Unavailable):
    """Raised when the database cannot be reached, or cancelled a statement."""

    slug, title = "database-unavailable", "The database cannot be reached right now."


class CommitOutcomeUnknown(DatabaseUnavailable):
    """Raised when the connection was lost during a commit: the transaction may have taken effect or not."""


class KeySetUnavailable(Unavailable):
    """Raised when a token cannot be verified because the key set cannot be fetched."""

    slug, title = "key-set-unavailable", "Tokens cannot be verified right now."


class OutOfTime(TaskchatError):
    """Raised when the deadline of the request passes. The turn is kept, with the tool calls that took effect."""

    status, slug, title = 504, "out-of-time", "The answer took too long."


class ToolFailure(TaskchatError):
    """Raised by a tool that refuses a call. `detail` is a plain sentence for the model. It has no HTTP status."""

    slug, title = "tool-failure", "The tool could not do that."
