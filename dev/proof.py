"""Define the events that a built function must answer, the answers that are expected, and the rows they leave."""

import base64
import contextlib
import json
import shutil
import string
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from dev import backend, postgres, state
from dev import standin_model as model
from dev.standin_model.domain import domain
from dev.tokens import Issuer

AUTH = "https://auth.example.com"
HOST = "api.example.com"
RESOURCE = f"https://{HOST}/mcp"
EVENTS = state.ROOT / "events"
EXAMPLES = domain.examples
TOOLS = EXAMPLES.tools
CALLED = str(EXAMPLES.calls[0][1][EXAMPLES.text])
"""The text of the thing that the MCP event adds."""
WORDS = {
    # For a JSON text that stands inside a string of the event's own JSON.
    name: json.dumps(json.dumps(value))[1:-1]
    for name, value in {
        "ADD": EXAMPLES.add,
        "SHOW": EXAMPLES.show,
        "CALL": {"name": TOOLS[0], "arguments": EXAMPLES.calls[0][1]},
    }.items()
}
"""Values of the names in the events' bodies."""
CHAT, STREAM, MCP_TOOLS, RETENTION = "ChatFunction", "StreamFunction", "McpToolsFunction", "RetentionFunction"


class ProofError(Exception):
    """Raised when a result is not the expected one; its text gives both."""


@dataclass(frozen=True)
class Expected:
    """The answer that is expected to one event."""

    event: str
    function: str
    status: int
    tool_calls: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    """Texts that the body must contain."""

    def check(self, answer: dict[str, Any]) -> None:
        """Compare the function's answer. Raises ProofError."""
        status, body = answer.get("statusCode"), body_of(answer)
        if status != self.status:
            raise ProofError(f"{self.event}: expected status {self.status}, got {status}: {answer}")
        if missing := [text for text in self.says if text not in body]:
            raise ProofError(f"{self.event}: expected {missing} in the answer, got {body}")
        if (calls := tool_calls(answer)) != self.tool_calls:
            raise ProofError(f"{self.event}: expected the tool calls {self.tool_calls}, got {calls}")


EXPECTED = (
    Expected("health", CHAT, 200, says=('"ok"',)),
    Expected("chat_unauthorized", CHAT, 401, says=('"status":401',)),
    Expected("chat_add", CHAT, 200, tool_calls=(f"{TOOLS[0]} ok",), says=(EXAMPLES.added,)),
    Expected("chat_list", CHAT, 200, tool_calls=(f"{TOOLS[1]} ok",), says=(EXAMPLES.added,)),
    Expected("mcp_initialize", MCP_TOOLS, 200, says=('"serverInfo"',)),
    Expected(
        "mcp_list_tools",
        MCP_TOOLS,
        200,
        says=tuple(f'"name":"{tool}"' for tool in TOOLS),
    ),
    Expected("mcp_call_tool", MCP_TOOLS, 200, says=(CALLED, '"isError":false')),
)
"""In the order in which the events are sent: a later one finds the rows of an earlier one."""


def tool_calls(answer: dict[str, Any]) -> tuple[str, ...]:
    """Return the tool calls in a chat answer, each with its outcome."""
    body = json.loads(body_of(answer))
    return tuple(f"{call['tool']} {call['outcome']}" for call in body.get("tool_calls", ()))


def body_of(answer: dict[str, Any]) -> str:
    """Return the body as API Gateway would send it."""
    body: str = answer["body"]
    return base64.b64decode(body).decode() if answer["isBase64Encoded"] else body


@dataclass(frozen=True)
class Kept:
    """The rows that a user has in the database."""

    things: list[str]
    """Their texts."""
    calls: list[str]
    messages: int


EVERYTHING_KEPT = Kept(
    things=[EXAMPLES.added, CALLED],
    calls=[f"chat {TOOLS[0]} ok", f"chat {TOOLS[1]} ok", f"mcp {TOOLS[0]} ok"],
    messages=4,
)
"""The rows that all the events together leave in the database."""


@dataclass(frozen=True)
class Surroundings:
    """The servers and variables that a function needs, and the user on whose behalf it is called."""

    environment: dict[str, str]
    issuer: Issuer
    superuser_url: str

    @property
    def user_id(self) -> str:
        """The user's id."""
        return self.issuer.developer

    @property
    def token(self) -> str:
        """A new token for the chat API."""
        return self.issuer.mint(self.user_id, issuer=AUTH, audience=AUTH)

    def event(self, name: str) -> dict[str, Any]:
        """Return an event with the user's id and tokens, the domain's words and the current time in it."""
        mcp_token = self.issuer.mint_for_mcp(self.user_id, issuer=AUTH, resource=RESOURCE)
        template = string.Template((EVENTS / f"{name}.json").read_text())
        filled = template.safe_substitute(USER_ID=self.user_id, TOKEN=self.token, MCP_TOKEN=mcp_token, **WORDS)
        event: dict[str, Any] = json.loads(filled)
        event["requestContext"]["timeEpoch"] = int(time.time() * 1000)
        return event

    def kept(self) -> Kept:
        """Return the user's rows, read past row-level security."""
        with psycopg.connect(self.superuser_url) as connection:

            def column(query: str) -> list[Any]:
                return [value for (value,) in connection.execute(query, [self.user_id])]

            return Kept(
                things=column(f"SELECT {EXAMPLES.text} FROM {EXAMPLES.table} WHERE user_id = %s ORDER BY id"),  # noqa: S608
                calls=column(
                    "SELECT concat_ws(' ', door, tool, outcome) FROM tool_call WHERE user_id = %s ORDER BY created_at"
                ),
                messages=len(column("SELECT 1 FROM message WHERE user_id = %s")),
            )

    def check(self, expected: Kept) -> None:
        """Compare the user's rows. Raises ProofError."""
        if (kept := self.kept()) != expected:
            raise ProofError(f"expected in the database: {expected}, found: {kept}")


@contextlib.contextmanager
def surroundings(name: str, *, listen: str = "127.0.0.1", reach: str = "127.0.0.1") -> Iterator[Surroundings]:
    """Run an empty database with the schema, and the stand-in model, and yield them with a new issuer.

    They listen on the address `listen`, which the functions reach by the name `reach`.
    """
    directory = state.directory() / name
    shutil.rmtree(directory, ignore_errors=True)
    with (
        postgres.running(directory / "postgres", host=listen, durable=False) as database,
        model.running(listen, 0) as stand_in,
    ):
        backend.migrate(database, directory / "migrations.log")
        issuer = Issuer.new()
        environment = {
            "DATABASE_URL": database.app_url.replace(listen, reach),
            "RETENTION_DATABASE_URL": database.retention_url.replace(listen, reach),
            "RETENTION_DAYS": "1",
            "OPENAI_BASE_URL": stand_in.base_url.replace(listen, reach),
            "OPENAI_API_KEY": "stand-in",
            "MODEL": "stand-in",
            "AUTH_ISSUER": AUTH,
            "AUTH_AUDIENCE": AUTH,
            "AUTH_JWKS_JSON": issuer.jwks_json,
            "MCP_RESOURCE_URL": RESOURCE,
        }
        yield Surroundings(environment, issuer, database.superuser_url)
