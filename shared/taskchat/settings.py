"""Read the environment, once, into typed settings. No other module reads it.

`APP_SECRET_ARN` may name one Secrets Manager secret, a JSON object with the same names. The secret wins.
"""

import json
import os
import re
import sys
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from taskchat import postgres_url

S = TypeVar("S", bound=BaseModel)

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?")

MAY_BE_EMPTY: Final = frozenset({"REASONING_EFFORT"})
"""Variables for which the empty value differs from the default."""


class SettingsError(RuntimeError):
    """Raised at start for a variable that is missing or wrong. It names the variable, never its value."""


def _check_url(value: SecretStr) -> SecretStr:
    postgres_url.parse(value.get_secret_value())
    return value


DatabaseUrl = Annotated[SecretStr, AfterValidator(_check_url)]


class _Environment(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=str.upper)


class Settings(_Environment):
    """The variables of both APIs. An empty variable counts as not set, except those of MAY_BE_EMPTY."""

    database_url: DatabaseUrl
    """Pooled endpoint, runtime role. Neon's connection string works as copied."""

    openai_api_key: SecretStr = SecretStr("")
    """The key of the model's provider. The chat function needs one."""
    openai_base_url: str | None = None
    """Another provider's address with an API like OpenAI's. None: OpenAI's own."""
    model: str = "gpt-6-luna"
    """The model's name."""
    model_fallback: str | None = None
    """A model at the same address, called once when MODEL is down."""
    model_api: Literal["responses", "chat_completions"] = "responses"
    """The API of the provider. With `chat_completions`, OpenAI's current models call functions only if they do not
    reason: set REASONING_EFFORT to `none`."""
    reasoning_effort: Literal["", "none", "low", "medium", "high", "xhigh", "max"] = "low"
    """How hard the model thinks before it calls a tool or answers. Empty: the provider decides. At OpenAI's default,
    medium, each call of a model takes seconds of a turn's few.

    Models that do not reason refuse the parameter. The default goes only to a model whose name says that it reasons
    (`o3`, `gpt-6-luna`). A value in the environment also goes to any MODEL at another vendor's address, and
    template.yaml always sets one. MODEL_FALLBACK gets it only if its name says that it reasons."""

    auth_issuer: str = ""
    """The issuer of the tokens (`iss`): Better Auth's address, without a slash at its end. Every function that takes
    requests needs it."""
    auth_audience: str = ""
    """The audience of the chat tokens (`aud`): by default Better Auth's address, too. The chat function needs it."""
    auth_jwks_url: str | None = None
    """The address of the issuer's key set."""
    auth_jwks_json: str | None = None
    """A static key set, for use where none can be fetched."""

    mcp_resource_url: str | None = None
    """The public URL of the MCP endpoint, and the audience of its tokens."""

    cors_origins: frozenset[str] = frozenset()
    """Origins of other sites whose pages may call the MCP endpoint. API Gateway has the same list and answers browsers.
    The chat API does not check it: no page can borrow a cookie there."""

    stream_seconds: int = Field(default=120, ge=30, le=300)
    """Seconds that a request to the streaming function has. API Gateway waits for a stream as long as it goes on."""

    history_tokens: int = Field(default=12_000, ge=500)
    """Tokens of earlier turns that the model reads at most. Few conversations reach it. A history of this size costs
    about as much as the rest of a long turn, and half of it still holds dozens of turns."""

    deletions_per_turn: int = Field(default=10, ge=0)
    """Destructive calls of one message, before the agent asks: enough to tidy up, few to do again."""

    turn_burst: int = Field(default=20, ge=0, lt=10**6)
    """Turns that a user may begin at once. 0: no limit. A user types one or two. A phone that was offline sends what it
    has kept."""
    turns_per_minute: int = Field(default=20, ge=0, lt=10**6)
    """Turns that become available again per minute. 0: no limit. The model takes about three seconds for one, and no
    user reads faster."""
    mcp_burst: int = Field(default=60, ge=0, lt=10**6)
    """Requests that the user's MCP clients may make at once. 0: no limit. Each tool call is one. An agent that works
    through a list of fifty starts with three more."""
    mcp_requests_per_minute: int = Field(default=120, ge=0, lt=10**6)
    """MCP requests that become available again per minute. 0: no limit. A model decides on two calls a second at
    most."""
    data_burst: int = Field(default=120, ge=0, lt=10**6)
    """Requests for their own data (lists, conversations, export, erasure) that a user may make at once. 0: no limit. A
    page that opens reads two or three lists, and a client that pages through everything reads a hundred rows with
    each."""
    data_requests_per_minute: int = Field(default=240, ge=0, lt=10**6)
    """Such requests that become available again per minute. 0: no limit. Four a second: a person who scrolls and
    renames makes fewer."""
    daily_model_tokens: int = Field(default=1_000_000, ge=0, lt=10**12)
    """Input and output tokens of all the user's turns in one UTC day. 0: no limit. A turn with a tool call takes about
    3,000, and 25,000 with the longest history: that is 40 of the longest turns and hundreds of usual ones."""

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _exact_origins(cls, value: Any) -> frozenset[str]:
        origins = frozenset(str(value).lower().split(","))
        if not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("not origins with commas between them")
        return origins

    @field_validator("auth_jwks_json")
    @classmethod
    def _is_key_set(cls, value: str | None) -> str | None:
        document = json.loads(value) if value is not None else {"keys": []}
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise ValueError("not a JSON Web Key Set")
        return value


class RetentionSettings(_Environment):
    """The variables of the retention function."""

    retention_database_url: DatabaseUrl
    """Any endpoint, retention role."""
    retention_days: int = Field(default=0, ge=0, le=36_500)
    """Rows that are older are deleted. 0 keeps them for ever."""


class MigrationSettings(_Environment):
    """The variables of `make migrate`, which creates the roles that the other URLs name."""

    migration_database_url: DatabaseUrl
    """Direct endpoint, owner."""
    database_url: DatabaseUrl
    """Pooled endpoint, with the name and password of the runtime role to create."""
    retention_database_url: DatabaseUrl | None = None
    """The retention role to create. None: none is made, and one made earlier stays as it is."""
    audit_database_url: DatabaseUrl | None = None
    """The auditor's role to create. None: none is made, and one made earlier stays as it is."""


class AuditSettings(_Environment):
    """The variables of the operator's commands that read the database."""

    audit_database_url: DatabaseUrl
    """Any endpoint, auditor's role."""


def _read_secret(arn: str, seconds: float | None) -> dict[str, Any]:
    """Return the secret's object: a kept one, or a new one if there is a limit of `seconds`. Raises SettingsError."""
    # Imported here: boto3 costs a cold start 100 ms or more, and only a deployment with a secret needs it.
    from aws_lambda_powertools.utilities import parameters
    from aws_lambda_powertools.utilities.parameters.exceptions import GetParameterError, TransformParameterError
    from botocore.config import Config

    secret: Any
    try:
        if seconds is None:
            secret = parameters.get_secret(arn, transform="json")
        else:
            once = Config(connect_timeout=seconds, read_timeout=seconds, retries={"total_max_attempts": 1})
            secret = parameters.SecretsProvider(boto_config=once).get(arn, transform="json", force_fetch=True)
    except (GetParameterError, TransformParameterError) as error:
        raise SettingsError(f"APP_SECRET_ARN cannot be read: {type(error.__cause__ or error).__name__}.") from None
    if not isinstance(secret, dict):
        raise SettingsError("The secret named by APP_SECRET_ARN is not a JSON object.")
    return secret


def _read_environment(seconds: float | None) -> dict[str, Any]:
    values: dict[str, Any] = dict(os.environ)
    if arn := values.get("APP_SECRET_ARN"):
        values |= _read_secret(arn, seconds)
    return {name: value for name, value in values.items() if value != "" or name in MAY_BE_EMPTY}


def load(model: type[S]) -> S:
    """Parse the environment into `model`. Raises SettingsError."""
    return _parse(model, _read_environment(None))


def read_again(model: type[S], seconds: float) -> S:
    """Read the secret anew, within `seconds`, and parse the environment into `model`. Raises SettingsError."""
    return _parse(model, _read_environment(seconds))


def names_secret() -> bool:
    """Return whether APP_SECRET_ARN names a secret."""
    return bool(os.environ.get("APP_SECRET_ARN"))


def _parse(model: type[S], values: dict[str, Any]) -> S:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise SettingsError(f"The environment is incomplete: {problems}") from None


def forget_secret() -> None:
    """Make the next `load` read the secret again, with a new client."""
    if known := sys.modules.get("aws_lambda_powertools.utilities.parameters"):
        known.clear_caches()


def is_on_lambda() -> bool:
    """Return whether this process runs on Lambda or in its emulator."""
    return "AWS_LAMBDA_RUNTIME_API" in os.environ
