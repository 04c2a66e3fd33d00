"""Call the backend over HTTP for one person: a turn, a tool through MCP, and the person's own data."""

import time
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import httpx2
from pydantic import BaseModel

from dev.tokens import Issuer

TIMEOUT_SECONDS: Final = 40
"""Longer than any turn may take."""

_MCP: Final = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}


class BackendError(Exception):
    """Raised when the backend does not do what it does for every person: the run cannot go on."""


class Call(BaseModel):
    """A tool call that the backend returned."""

    tool: str
    arguments: dict[str, Any]
    outcome: str
    result: dict[str, Any]


class Turn(BaseModel):
    """A message and its answer."""

    message: str
    status: int
    reply: str
    calls: list[Call]
    seconds: float


class Tokens(BaseModel):
    """Tokens of a model. `other` are those of turns without a reply, of which the backend does not keep the kind."""

    input: int = 0
    cached: int = 0
    output: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """Return all of them. Cached tokens are a part of the input."""
        return self.input + self.output + self.other


@dataclass(frozen=True)
class Backend:
    """A development server, and the key that signs its tokens."""

    http: httpx2.AsyncClient
    issuer: Issuer

    @property
    def url(self) -> str:
        """Return the server's address, which is the issuer and the audience of its tokens too."""
        return str(self.http.base_url).rstrip("/")

    def new_person(self) -> "Person":
        """Return a person whom the backend does not know yet."""
        return Person(self, uuid4().hex)


@dataclass(frozen=True)
class Person:
    """One user of the backend."""

    backend: Backend
    id: str

    async def say(self, message: str, conversation_id: str | None, timezone: str) -> tuple[Turn, str | None]:
        """Take a turn. Return it, and the id of its conversation. A failed turn has a status other than 200."""
        body = {"message": message, "conversation_id": conversation_id, "timezone": timezone}
        began = time.perf_counter()
        response = await self._send("POST", "/chat", json=body, headers={"Idempotency-Key": uuid4().hex})
        seconds = time.perf_counter() - began
        answer = response.json()
        calls = [Call.model_validate(call) for call in answer.get("tool_calls", ())]
        reply = answer.get("response") or answer.get("title") or ""
        turn = Turn(message=message, status=response.status_code, reply=reply, calls=calls, seconds=seconds)
        return turn, answer.get("conversation_id") or conversation_id

    async def call_tool(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool through MCP, and return its result. Raises BackendError for a call that fails."""
        url = self.backend.url
        token = self.backend.issuer.mint_for_mcp(self.id, issuer=url, resource=f"{url}/mcp")
        params = {"name": tool, "arguments": arguments}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {**_MCP, "Authorization": f"Bearer {token}"}
        response = await self.backend.http.post("/mcp", json=message, headers=headers)
        result = response.json().get("result", {})
        if "structuredContent" not in result or result.get("isError"):
            raise BackendError(f"{tool} did not prepare a case: {response.text[:300]}")
        made: dict[str, Any] = result["structuredContent"]
        return made

    async def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """Read one of the person's own routes. Raises BackendError for an answer other than 200."""
        response = await self._send("GET", path, params=query)
        if response.status_code != httpx2.codes.OK:
            raise BackendError(f"GET {path} answered {response.status_code}: {response.text[:300]}")
        answer: dict[str, Any] = response.json()
        return answer

    async def tokens(self) -> Tokens:
        """Return the tokens of all the person's turns, from the export."""
        tables = (await self.get("/export"))["tables"]
        usages = [row["usage"] for row in tables.get("message", ()) if row["usage"]]
        known = Tokens(
            input=sum(usage["input_tokens"] for usage in usages),
            cached=sum(usage["cached_tokens"] for usage in usages),
            output=sum(usage["output_tokens"] for usage in usages),
        )
        spent = sum(row["model_tokens"] for row in tables.get("allowance", ()))
        return known.model_copy(update={"other": max(0, spent - known.total)})

    async def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        url = self.backend.url
        token = self.backend.issuer.mint(self.id, issuer=url, audience=url)
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        return await self.backend.http.request(method, f"/api/{self.id}{path}", headers=headers, **options)
