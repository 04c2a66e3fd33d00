"""Check what is reached over HTTP: the key set, the model, the API and the MCP endpoint."""

import asyncio
import json
import time
from contextlib import closing
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import openai
from agents import FunctionTool, ModelSettings
from agents.models.interface import ModelTracing
from openai.types.responses import ResponseFunctionToolCall

from chat.model import ProviderModel
from chat.reasoning import effort
from operations.checks.deployment import Deployment, Skipped, Wrong
from taskchat import deadline
from taskchat.errors import ModelFailed, OutOfTime, Unauthenticated
from taskchat.http.auth import KEY_SET_TIMEOUT, KeySet
from taskchat.settings import Settings

HTTP_SECONDS: Final = 10.0
MODEL_SECONDS: Final = 25.0
MAX_TOKENS: Final = 512
"""Tokens of the one answer of the model, reasoning included."""

METADATA: Final = "/.well-known/oauth-protected-resource"


def check_key_set(deployment: Deployment) -> str:
    """Fetch the key set, and count the keys that can verify a token."""
    settings = deployment.settings
    if not settings.auth_jwks_url:
        raise Skipped("AUTH_JWKS_URL is not set: the static key set serves")
    usable = _usable_keys(_fetch_key_set(settings.auth_jwks_url))
    if not usable:
        raise Wrong("no key in it can verify a token", "let Better Auth make EdDSA, ES256 or RS256 keys (docs/auth.md)")
    if urlsplit(settings.auth_jwks_url)[:2] != urlsplit(settings.auth_issuer)[:2]:
        raise Wrong(
            "AUTH_ISSUER and AUTH_JWKS_URL are on different servers: no token of this issuer would be accepted",
            "set AuthIssuer to Better Auth's base URL, and AuthJwksUrl to <issuer>/api/auth/jwks",
        )
    return f"{usable} usable keys"


def _fetch_key_set(url: str) -> bytes:
    mend = "open AUTH_JWKS_URL in a browser: it must answer 200 with a key set within 2 s, without a redirect"
    try:
        response = httpx2.get(url, timeout=KEY_SET_TIMEOUT)
    except httpx2.HTTPError as error:
        raise Wrong(f"it cannot be fetched: {type(error).__name__}", mend) from None
    if response.status_code != httpx2.codes.OK:
        raise Wrong(f"the server answers {response.status_code}", mend)
    return response.content


def _usable_keys(body: bytes) -> int:
    try:
        keys = KeySet(None, body.decode())
        named = [key.get("kid") for key in json.loads(body)["keys"] if isinstance(key, dict)]
    except ValueError:
        raise Wrong("the answer is not a key set", "set AuthJwksUrl to <issuer>/api/auth/jwks") from None
    return sum(_finds(keys, str(name)) for name in named)


def _finds(keys: KeySet, name: str) -> bool:
    try:
        keys.find(name)
    except Unauthenticated:
        return False
    return True


def check_model(deployment: Deployment) -> str:
    """Ask the model for one tool call, as a turn does."""
    settings, began = deployment.settings, time.monotonic()
    with closing(asyncio.new_event_loop()) as loop:
        called = loop.run_until_complete(_ask(settings))
    if not called:
        raise Wrong(
            f"{settings.model} answers through {settings.model_api}, but calls no tool",
            "set ReasoningEffort=none, or ModelApi=responses: some models call tools only so (docs/settings.md)",
        )
    return f"{settings.model} calls tools through {settings.model_api}, in {time.monotonic() - began:.1f} s"


async def _ask(settings: Settings) -> bool:
    model = ProviderModel(settings)
    try:
        with deadline.within(MODEL_SECONDS):
            answer = await model.get_response(
                "Use the tool.", "List my tasks.", _model_settings(settings), [_tool()], None, [], ModelTracing.DISABLED
            )
    except (ModelFailed, OutOfTime) as error:
        raise _explain(error) from None
    finally:
        await model.close()
    return any(isinstance(item, ResponseFunctionToolCall) for item in answer.output)


def _model_settings(settings: Settings) -> ModelSettings:
    common: dict[str, Any] = {"store": False, "reasoning": effort(settings), "include_usage": True}
    if settings.model_api == "responses" or settings.openai_base_url:
        return ModelSettings(max_tokens=MAX_TOKENS, **common)
    return ModelSettings(extra_args={"max_completion_tokens": MAX_TOKENS}, **common)


def _tool() -> FunctionTool:
    async def refuse(*_: Any) -> str:
        raise NotImplementedError

    schema = {"type": "object", "properties": {}, "additionalProperties": False, "required": []}
    return FunctionTool("list_tasks", "List the user's tasks.", schema, refuse)


_REFUSALS: Final = {
    401: ("the key is refused", "put a valid OPENAI_API_KEY into the secret"),
    403: ("the key may not use this model", "allow the model for the key's project"),
    404: (
        "there is no such model or path",
        "compare MODEL and OPENAI_BASE_URL (it ends in /v1) with the vendor's page",
    ),
    429: ("the key's quota is used up", "raise the limit at the vendor, or name a MODEL_FALLBACK"),
    400: (
        "the request is refused",
        "set ReasoningEffort to the empty value if the model does not reason, or change ModelApi",
    ),
}


def _explain(error: Exception) -> Wrong:
    cause = error.__cause__
    if isinstance(cause, openai.APIStatusError) and cause.status_code in _REFUSALS:
        text, mend = _REFUSALS[cause.status_code]
        return Wrong(f"{text} ({cause.status_code})", mend)
    return Wrong(f"{type(cause or error).__name__}: {error}", "look at the vendor's status page and at OPENAI_BASE_URL")


def check_api(deployment: Deployment) -> str:
    """Ask the API for its health, and whether it refuses a request without a token."""
    response = _send(deployment, "GET", "/health")
    if response.status_code != httpx2.codes.OK:
        raise Wrong(
            f"/health answers {response.status_code}", "look at the function's log (docs/runbook.md#server-errors)"
        )
    refused = _send(deployment, "GET", "/api/doctor/tasks")
    if refused.status_code != httpx2.codes.UNAUTHORIZED:
        raise Wrong(f"a request without a token gets {refused.status_code}, not 401", "is this the address of the API?")
    return "/health answers, and a request without a token gets 401"


def check_mcp(deployment: Deployment) -> str:
    """Ask the MCP endpoint for its metadata, and whether it refuses a request without a token."""
    resource = deployment.settings.mcp_resource_url
    if not resource:
        raise Skipped("MCP_RESOURCE_URL is not set")
    refused = _send(deployment, "POST", urlsplit(resource).path, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
    if refused.status_code == httpx2.codes.MISDIRECTED_REQUEST:
        raise Wrong(
            "it answers 421: McpResourceUrl names another host", "set McpResourceUrl to the address that clients use"
        )
    if refused.status_code != httpx2.codes.UNAUTHORIZED or "www-authenticate" not in _plain_names(refused):
        raise Wrong(
            f"a request without a token gets {refused.status_code}, not 401 with WWW-Authenticate",
            "look at the function's log (docs/runbook.md#server-errors)",
        )
    metadata = _send(deployment, "GET", METADATA)
    if metadata.status_code != httpx2.codes.OK or metadata.json().get("resource") != resource:
        raise Wrong(
            "the metadata names another resource", "set McpResourceUrl to the address that clients use, and deploy"
        )
    return "401 with WWW-Authenticate, and its metadata names the resource"


def _plain_names(response: httpx2.Response) -> set[str]:
    """Return the names of the headers. Some gateways put a prefix before WWW-Authenticate."""
    return {name.lower().removeprefix("x-amzn-remapped-") for name in response.headers}


def check_cors(deployment: Deployment) -> str:
    """Send a browser's preflight request of the first allowed origin."""
    origins = sorted(deployment.settings.cors_origins)
    if not origins:
        raise Skipped("CORS_ORIGINS is not set: no page of another site calls the API")
    headers = {"Origin": origins[0], "Access-Control-Request-Method": "POST"}
    response = _send(deployment, "OPTIONS", "/api/doctor/chat", headers=headers)
    if response.headers.get("access-control-allow-origin") != origins[0]:
        raise Wrong(f"a preflight request of {origins[0]} is refused", "set CorsOrigins in samconfig.toml, and deploy")
    return f"pages of {origins[0]} may call the API"


def _send(deployment: Deployment, method: str, path: str, **options: Any) -> httpx2.Response:
    if not deployment.url:
        raise Skipped("no address: run `make doctor URL=https://…`")
    try:
        return httpx2.request(method, deployment.url.rstrip("/") + path, timeout=HTTP_SECONDS, **options)
    except httpx2.HTTPError as error:
        raise Wrong(
            f"no answer: {type(error).__name__}", "compare the address with the output ApiUrl of the stack"
        ) from None
