"""The chat API: the route, who may use it, what goes wrong in words, and the Lambda handler.

A request walks one way: ErrorBoundary, caller, chat, TurnRunner. Who is calling is settled before the body is read.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Annotated, Final

from fastapi import Depends, FastAPI, Path, Request, Response, Security
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from chat.agent import ChatAgent
from chat.description import CHAT_REQUEST, CHAT_RESPONSES, USER_ID_SCHEMA, BearerToken, DescribedApi
from chat.rehearsal import Model
from chat.schemas import ChatRequest, ChatResponse, Health
from chat.turn import TurnRunner
from taskchat import conversations, deadline, lifecycle, rehearsal
from taskchat.auth import USER_ID, Verifier, chat_verifier
from taskchat.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    NotJson,
)
from taskchat.gateway import MARGIN, MAX_SECONDS, answering, lambda_handler
from taskchat.guards import BodyLimit, SecurityHeaders, require_json
from taskchat.limits import chat_limits
from taskchat.problems import ErrorBoundary, tell_routing
from taskchat.rehearsal import ISSUER, Person, played, standing_in
from taskchat.settings import Settings, forget_settings, get_settings
from taskchat.tools import database

Token = Annotated[str, Security(BearerToken())]
UserId = Annotated[str, Path(json_schema_extra=USER_ID_SCHEMA)]


@lru_cache(maxsize=1)
def verifier() -> Verifier:
    """The verifier of this process, which keeps public keys between requests. Raises SettingsError."""
    return chat_verifier(get_settings())


@lru_cache(maxsize=1)
def turns() -> TurnRunner:
    """The turn runner of this process. Raises SettingsError."""
    return _turns(get_settings())


def _turns(settings: Settings) -> TurnRunner:
    return TurnRunner(
        database(), ChatAgent(settings), settings.history_tokens, settings.deletions_per_turn, chat_limits(settings)
    )


async def caller(user_id: UserId, token: Token) -> str:
    """The person calling. Raises Unauthenticated, KeySetUnavailable, NotFound for an odd path, or Forbidden.

    In the event loop: to hand each request to a thread and back would cost more than to check its token.
    """
    claims = played(verifier).verify(token)
    if not USER_ID.fullmatch(user_id):
        raise NotFound
    if claims["sub"] != user_id:
        raise Forbidden
    return user_id


Caller = Annotated[str, Depends(caller)]


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Close what was opened. For a server that ends: an execution environment is frozen and thrown away."""
    yield
    await _close()


async def _close() -> None:
    if turns.cache_info().currsize:
        await turns().agent.close()
        database().close()
        turns.cache_clear()


app: Final = DescribedApi(
    title="taskchat",
    openapi_url=None,
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
    middleware=[Middleware(SecurityHeaders), Middleware(ErrorBoundary), Middleware(BodyLimit)],
    exception_handlers={HTTPException: tell_routing},
    lifespan=_lifespan,
)


@app.post("/api/{user_id}/chat", responses=CHAT_RESPONSES, openapi_extra=CHAT_REQUEST)
async def chat(user_id: Caller, request: Request, response: Response) -> ChatResponse:
    """Do what the person says, and tell what was done."""
    key = _idempotency_key(request)
    body = await _read(request)
    wanted = conversations.Request(body.message, body.conversation_id, body.timezone)
    turn_id = conversations.turn_id_for(user_id, key)
    with deadline.within(min(deadline.remaining(), MAX_SECONDS - MARGIN)):
        answer = await played(turns).run(user_id, turn_id, wanted)
    if answer.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return answer.response


@app.get("/health")
async def health() -> Health:
    """Say that this process answers. Anybody may ask: it costs no database, which a scanner would keep awake."""
    return Health(status="ok")


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or any(not 1 <= len(key) <= 255 or any(not "!" <= c <= "~" for c in key) for key in keys):
        raise InvalidInput([{"field": "Idempotency-Key", "message": "1 to 255 visible ASCII characters, once"}])
    return keys[0] if keys else None


async def _read(request: Request) -> ChatRequest:
    """The body, checked. Raises UnsupportedMediaType, BodyTooLarge, NotJson or InvalidInput."""
    require_json(request.headers)
    try:
        return ChatRequest.model_validate_json(await request.body())
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
    if faults[0]["type"] == "json_invalid":
        raise NotJson
    raise InvalidInput([{"field": _field(fault), "message": fault["msg"]} for fault in faults])


def _field(fault: ErrorDetails) -> str:
    """The field at fault. The name of an unknown one is the caller's own text, and is not sent back."""
    if fault["type"] == "extra_forbidden":
        return "unknown"
    return str(fault["loc"][0]) if fault["loc"] else "body"


handler: Final = lambda_handler(app, lifespan="off")


def get_ready() -> None:
    """Have everything that the first request would wait for or build. Raises SettingsError."""
    judge, runner = verifier(), turns()
    lifecycle.side_by_side(database().connect, judge.keys.fetch_ahead)
    asyncio.get_event_loop().run_until_complete(runner.agent.list_tools())
    lifecycle.attempt(rehearse)


def rehearse() -> None:
    """One turn of nobody's, of which nothing stays. Raises RehearsalFailed, or what connecting raises."""
    person, model = Person(), Model(get_settings().model_api)
    with model.playing() as url, database().rehearsal():
        elsewhere = {"auth_audience": ISSUER, "openai_base_url": url}
        settings = person.trusted_by(get_settings()).model_copy(update=elsewhere)
        runner = _turns(settings)
        body = {"message": "rehearse", "timezone": "Europe/Paris"}
        event = rehearsal.request(f"/api/{person.id}/chat", person.token(ISSUER, "JWT"), body)
        try:
            with standing_in({verifier: chat_verifier(settings), turns: runner}):
                rehearsal.perform(answering(app, lifespan="off"), event)
        finally:
            asyncio.get_event_loop().run_until_complete(runner.agent.close())


def forget() -> None:
    """Drop what must be fresh in each process that is started from a snapshot of this one."""
    asyncio.get_event_loop().run_until_complete(_close())
    for made in (verifier, database):
        made.cache_clear()
    forget_settings()
