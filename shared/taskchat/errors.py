"""Everything that can go wrong on purpose, with the status and the words a caller is told.

    TaskchatError
    ├── Malformed 400
    ├── NotJson 400
    ├── Unauthenticated 401
    ├── Forbidden 403
    ├── OriginRefused 403
    ├── NotFound 404
    ├── MethodNotAllowed 405
    ├── NotAcceptable 406
    ├── TurnInProgress 409
    ├── BodyTooLarge 413
    ├── UnsupportedMediaType 415
    ├── Misdirected 421
    ├── InvalidInput 422
    ├── KeyReused 422
    ├── TooManyRequests 429
    ├── ModelFailed 502
    ├── Unavailable 503
    │   ├── DatabaseUnavailable
    │   │   └── CommitOutcomeUnknown
    │   └── KeySetUnavailable
    ├── OutOfTime 504
    └── ToolFailure            a tool's refusal: told to the model, never a status

The texts are fixed: no exception text and nothing of the input ever reaches a caller.
"""

from typing import Any, ClassVar


class TaskchatError(Exception):
    """Base of all expected failures. `slug` ends the problem type's URI and never changes meaning."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong on our side."

    def __init__(self, detail: str | None = None, *, retry_after: int | None = None) -> None:
        """`detail` adds a fixed sentence to the title; `retry_after` is in whole seconds."""
        super().__init__(detail or self.title)
        self.detail = detail
        self.retry_after = retry_after
        self.members: dict[str, Any] = {}
        """What a caller is told besides: the fields at fault, or how far the turn came."""


class Malformed(TaskchatError):
    """Raised when an event is no HTTP request, as the gateway writes them down."""

    status, slug, title = 400, "malformed", "This is not a request."


class NotJson(TaskchatError):
    """Raised when the body is not JSON text in UTF-8."""

    status, slug, title = 400, "not-json", "The body is not JSON."


class Unauthenticated(TaskchatError):
    """Raised when there is no token, or one that proves nothing."""

    status, slug, title = 401, "unauthenticated", "A valid bearer token is needed."


class Forbidden(TaskchatError):
    """Raised when the path names somebody other than the token does."""

    status, slug, title = 403, "forbidden", "This path belongs to somebody else."


class OriginRefused(TaskchatError):
    """Raised when a browser says it speaks for a page of another site, and that site is not allowed to."""

    status, slug, title = 403, "origin-refused", "Pages of this origin may not call this."


class NotFound(TaskchatError):
    """Raised for an unknown path and for a conversation that is not the caller's: the two look alike."""

    status, slug, title = 404, "not-found", "There is nothing here."


class MethodNotAllowed(TaskchatError):
    """Raised when the path is known and the method is not."""

    status, slug, title = 405, "method-not-allowed", "This method is not allowed here."


class NotAcceptable(TaskchatError):
    """Raised when the caller takes no answer in JSON."""

    status, slug, title = 406, "not-acceptable", "The answer is JSON, which this request does not accept."


class TurnInProgress(TaskchatError):
    """Raised when another turn holds the conversation."""

    status, slug, title = 409, "turn-in-progress", "A turn is still running in this conversation."


class BodyTooLarge(TaskchatError):
    """Raised when the body is over the limit, before it is parsed."""

    status, slug, title = 413, "body-too-large", "The body is larger than 32 KiB."


class UnsupportedMediaType(TaskchatError):
    """Raised when the body is not declared as application/json."""

    status, slug, title = 415, "unsupported-media-type", "The body must be application/json."


class Misdirected(TaskchatError):
    """Raised when the caller thinks it is speaking to another host."""

    status, slug, title = 421, "misdirected", "This host is not served here."


class InvalidInput(TaskchatError):
    """Raised when a field is missing, unknown or out of range."""

    status, slug, title = 422, "invalid-input", "The request does not fit the contract."

    def __init__(self, fields: list[dict[str, str]]) -> None:
        """`fields` names each field at fault and says why, and never what it held."""
        super().__init__()
        self.members = {"fields": fields}


class KeyReused(TaskchatError):
    """Raised when an Idempotency-Key comes back with another body."""

    status, slug, title = 422, "idempotency-key-reused", "This Idempotency-Key was used for another request."


class TooManyRequests(TaskchatError):
    """Raised when a person has used what the limits allow them, with the time until there is more."""

    status, slug, title = 429, "too-many-requests", "This is more than one person may ask for."


class ModelFailed(TaskchatError):
    """Raised when the model gave no usable answer. The turn stays, with the tool calls that took effect."""

    status, slug, title = 502, "model-failed", "The model failed to answer."


class Unavailable(TaskchatError):
    """Base of what passes by itself: something this service needs cannot be reached."""

    status, slug, title = 503, "unavailable", "The service is not available right now."


class DatabaseUnavailable(Unavailable):
    """Raised when the database cannot be reached, or gave up on a statement."""

    slug, title = "database-unavailable", "The database cannot be reached right now."


class CommitOutcomeUnknown(DatabaseUnavailable):
    """Raised when the connection was lost during a commit: the transaction may have taken effect or not."""


class KeySetUnavailable(Unavailable):
    """Raised when a token cannot be judged because the key set cannot be fetched."""

    slug, title = "key-set-unavailable", "Tokens cannot be verified right now."


class OutOfTime(TaskchatError):
    """Raised when the deadline of the request passes. The turn stays, with the tool calls that took effect."""

    status, slug, title = 504, "out-of-time", "The answer took too long."


class ToolFailure(TaskchatError):
    """Raised by a tool that refuses. `detail` is a plain sentence for the model."""

    slug, title = "tool-failure", "The tool could not do that."
