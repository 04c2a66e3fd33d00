"""The errors of this program, with the HTTP status and the texts for the client.

The texts are fixed: no exception text and nothing of the request reaches a client.
"""

from typing import Any, ClassVar


class TaskchatError(Exception):
    """Base of all expected errors. `slug` ends the problem type's URI, and its meaning never changes.

    Raised for an unexpected error: a bug, or a wrong setting. A retry of the same request is safe, and seldom helps.
    """

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

    def __init_subclass__(cls, status: int | None = None, slug: str | None = None, title: str | None = None) -> None:
        """Set what the arguments of the class statement name. The rest is inherited."""
        super().__init_subclass__()
        cls.status, cls.slug, cls.title = status or cls.status, slug or cls.slug, title or cls.title


class Malformed(TaskchatError, status=400, slug="malformed", title="This is not a request."):
    """Raised when an event is not an HTTP request of API Gateway."""


class NotJson(TaskchatError, status=400, slug="not-json", title="The body is not JSON."):
    """Raised when the body is not JSON text in UTF-8."""


class Unauthenticated(TaskchatError, status=401, slug="unauthenticated", title="A valid bearer token is needed."):
    """Raised when there is no token, or an invalid one. A retry of the same request helps with a new token."""


class Forbidden(TaskchatError, status=403, slug="forbidden", title="This path belongs to another user."):
    """Raised when the path and the token name different users."""


class OriginRefused(TaskchatError, status=403, slug="origin-refused", title="Pages of this origin may not call this."):
    """Raised when a browser sends a request of another site's page, and that site is not allowed."""


class NotFound(TaskchatError, status=404, slug="not-found", title="There is nothing here."):
    """Raised for an unknown path, or a conversation of another user: the client cannot tell the two apart."""


class MethodNotAllowed(TaskchatError, status=405, slug="method-not-allowed", title="This method is not allowed here."):
    """Raised when the path is known, but not the method."""


class NotAcceptable(
    TaskchatError, status=406, slug="not-acceptable", title="The answer is JSON, which this request does not accept."
):
    """Raised when the client does not accept JSON."""


class TurnInProgress(
    TaskchatError, status=409, slug="turn-in-progress", title="A turn is still running in this conversation."
):
    """Raised when another turn holds the lease of the conversation.

    A retry of the same request helps after `Retry-After`.
    """


class BodyTooLarge(TaskchatError, status=413, slug="body-too-large", title="The body is larger than 32 KiB."):
    """Raised when the body is over the limit, before it is parsed."""


class UnsupportedMediaType(
    TaskchatError, status=415, slug="unsupported-media-type", title="The body must be application/json."
):
    """Raised when the body is not declared as application/json."""


class Misdirected(TaskchatError, status=421, slug="misdirected", title="This host is not served here."):
    """Raised when the Host header names another host."""


class InvalidInput(TaskchatError, status=422, slug="invalid-input", title="The request does not fit the contract."):
    """Raised when a field is missing, unknown or out of range."""

    def __init__(self, fields: list[dict[str, str]]) -> None:
        """`fields` has the name of each field at fault and the reason, never the value."""
        super().__init__()
        self.members = {"fields": fields}


class KeyReused(
    TaskchatError, status=422, slug="idempotency-key-reused", title="This Idempotency-Key was used for another request."
):
    """Raised when an Idempotency-Key is used again with another body. A retry helps with a new key."""


class ConfirmationRequired(
    TaskchatError, status=428, slug="confirmation-required", title="Send the header Confirm: erase."
):
    """Raised when a request that cannot be undone does not say that it is meant. A retry helps with that header."""


class TooManyRequests(TaskchatError, status=429, slug="too-many-requests", title="This user has reached a limit."):
    """Raised when a user has reached a limit. `Retry-After` says when it ends.

    A retry of the same request helps after `Retry-After`.
    """


class ModelFailed(TaskchatError, status=502, slug="model-failed", title="The model failed to answer."):
    """Raised when the model gave no usable answer. The turn is kept, with the tool calls that took effect.

    A retry of the same request goes on with the turn: after `Retry-After`, if the model sent one.
    """


class Unavailable(TaskchatError, status=503, slug="unavailable", title="The service is not available right now."):
    """Base of temporary errors: a service that this one needs cannot be reached.

    Raised when the server stops during a turn. A retry of the same request goes on with the turn, after `Retry-After`.
    """


class DatabaseUnavailable(Unavailable, slug="database-unavailable", title="The database cannot be reached right now."):
    """Raised when the database cannot be reached, or cancelled a statement.

    A retry of the same request helps after `Retry-After`, and goes on with a turn that had begun.
    """


class CommitOutcomeUnknown(DatabaseUnavailable):
    """Raised when the connection was lost during a commit: the transaction may have taken effect or not."""


class KeySetUnavailable(Unavailable, slug="key-set-unavailable", title="Tokens cannot be verified right now."):
    """Raised when a token cannot be verified because the key set cannot be fetched.

    A retry of the same request helps after `Retry-After`.
    """


class OutOfTime(TaskchatError, status=504, slug="out-of-time", title="The answer took too long."):
    """Raised when the deadline of the request passes. The turn is kept, with the tool calls that took effect.

    A retry of the same request goes on with the turn at once.
    """


class ToolFailure(TaskchatError, slug="tool-failure", title="The tool could not do that."):
    """Raised by a tool that refuses a call. `detail` is a plain sentence for the model. It has no HTTP status."""
