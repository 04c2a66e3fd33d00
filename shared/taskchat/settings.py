"""The only reader of the environment: every variable the program knows, parsed once.

`APP_SECRET_ARN` may name one Secrets Manager secret, a JSON object with these same names; it wins over the environment.
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
"""Variables for which nothing is a value, and another than the default."""


class SettingsError(RuntimeError):
    """Raised at start when a variable is missing, does not parse, or must not be so. Names it, never its value."""


def _check_url(value: SecretStr) -> SecretStr:
    postgres_url.parse(value.get_secret_value())
    return value


DatabaseUrl = Annotated[SecretStr, AfterValidator(_check_url)]
"""A libpq URL that can work. What is wrong with another is told without its value."""


class Settings(BaseModel):
    """The environment, typed. A variable that is set to nothing counts as not set, but for those of MAY_BE_EMPTY."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=str.upper)

    database_url: DatabaseUrl
    """Pooled endpoint, runtime role. Neon's connection string works as copied."""

    openai_api_key: SecretStr = SecretStr("")
    openai_base_url: str | None = None
    model: str = "gpt-6-luna"
    """With the Chat Completions API, OpenAI lets its current models call no functions unless they do not reason."""
    model_fallback: str | None = None
    """Tried once, at the same address, when MODEL is down."""
    model_api: Literal["responses", "chat_completions"] = "responses"
    reasoning_effort: Literal["", "none", "low", "medium", "high", "xhigh", "max"] = "low"
    """How hard the model thinks before it calls a tool or answers; set to nothing, the provider decides. Lists of tasks
    need little thought, and at OpenAI's own default, medium, each call of a model takes seconds of a turn's few. With
    the Chat Completions API, OpenAI's current models call functions only with `none`.

    Models that do not reason refuse any value. So the default is sent only to a model whose name says that it reasons
    (`o3`, `gpt-6-luna`), and a value that is set, at the address of another vendor, to whichever MODEL names there.
    MODEL_FALLBACK gets it only if its name says that it reasons."""

    auth_issuer: str = ""
    auth_audience: str = ""
    auth_jwks_url: str | None = None
    auth_jwks_json: str | None = None
    """A static key set, for use where none can be fetched."""

    mcp_resource_url: str | None = None
    """The public URL of the MCP endpoint: the only audience its tokens may have."""

    cors_origins: frozenset[str] = frozenset()
    """Origins of other sites whose pages may call the MCP endpoint. The gateway, which has the same list, tells
    browsers about them; at the chat API it alone does, for there is no cookie that a page could borrow."""

    history_tokens: int = Field(default=12_000, ge=500)
    """How many tokens of earlier turns the model reads at most. Most conversations never reach it; at
    this size the history costs about as much as the rest of a long turn, and half of it still holds dozens of turns."""

    deletions_per_turn: int = Field(default=10, ge=0)
    """How many destructive calls one message may make before the person is asked: enough to tidy up, few to redo."""

    turn_burst: int = Field(default=20, ge=0, lt=10**6)
    """Turns a person may begin at once; 0 for no limit, as in each of these. A person types one or two; a phone that
    was out of reach sends what it has kept."""
    turns_per_minute: int = Field(default=20, ge=0, lt=10**6)
    """Turns a person may begin in a minute after that: one every three seconds is about what the model takes for one,
    and more than anybody reads."""
    mcp_burst: int = Field(default=60, ge=0, lt=10**6)
    """MCP requests a person's clients may make at once: each tool call is one, and an agent that tidies up a list of
    fifty begins with three to say hello and read it."""
    mcp_requests_per_minute: int = Field(default=120, ge=0, lt=10**6)
    """MCP requests in a minute after that: two a second is as fast as a model decides on calls one by one."""
    daily_model_tokens: int = Field(default=1_000_000, ge=0, lt=10**12)
    """Input and output tokens that the model may cost a person in a day, by UTC. A turn with a tool call takes about
    3,000, and 25,000 with the longest history: room for forty of the longest and hundreds of usual ones. A turn ends
    before the call of the model that would begin beyond it; turns at the same time do not see each other's use."""

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


class MigrationSettings(BaseModel):
    """What `make migrate` reads: the owner's direct URL, and the runtime role to create from DATABASE_URL."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=str.upper)

    migration_database_url: DatabaseUrl
    database_url: DatabaseUrl


def _read_secret(arn: str) -> dict[str, Any]:
    # boto3 costs a cold start 100 ms or more: only who keeps a secret pays for it.
    from aws_lambda_powertools.utilities import parameters
    from aws_lambda_powertools.utilities.parameters.exceptions import GetParameterError, TransformParameterError

    try:
        secret = parameters.get_secret(arn, transform="json")
    except (GetParameterError, TransformParameterError) as error:
        raise SettingsError(f"APP_SECRET_ARN cannot be read: {type(error.__cause__ or error).__name__}.") from None
    if not isinstance(secret, dict):
        raise SettingsError("The secret named by APP_SECRET_ARN is not a JSON object.")
    return secret


def _environment() -> dict[str, Any]:
    values: dict[str, Any] = dict(os.environ)
    if arn := values.get("APP_SECRET_ARN"):
        values |= _read_secret(arn)
    return {name: value for name, value in values.items() if value != "" or name in MAY_BE_EMPTY}


def load(model: type[S]) -> S:
    """Parse the environment into `model`. Raises SettingsError."""
    try:
        return model.model_validate(_environment())
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise SettingsError(f"The environment is incomplete: {problems}") from None


def forget_secret() -> None:
    """Have the next `load` read the secret again, through a new client."""
    if known := sys.modules.get("aws_lambda_powertools.utilities.parameters"):
        known.clear_caches()


def is_on_lambda() -> bool:
    """Whether this process is an execution environment, Lambda's own or an emulated one."""
    return "AWS_LAMBDA_RUNTIME_API" in os.environ
