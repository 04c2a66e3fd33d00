"""Serve the chat API: authenticate the caller, run a turn, and make the Lambda handler.

A request passes answer_safely, limit_body, Caller, the route and its work, in this order: a route reads the body of a
known caller only.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Annotated, Final

from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from chat import conversation_routes, personal_data_routes
from chat.agent import ChatAgent
from chat.openapi import (
    CHAT_REQUEST,
    CHAT_RESPONSES,
    DATA_RESPONSES,
    HEALTH_RESPONSES,
    RESUME_RESPONSES,
    DescribedApi,
    operation_id,
)
from chat.running import RunningTurns, TurnResult
from chat.schemas import ChatResponse, Health
from chat.stream.ai_sdk import AiSdkEncoder
from chat.stream.asked import conversation_id_of
from chat.stream.protocols import MAX_CLIENT_LIST, read_asked
from chat.stream.response import EventResponse
from chat.turn import TurnRunner
from taskchat import deadline
from taskchat.conversations import deletion, reading, running
from taskchat.conversations.turns import turn_id_for
from taskchat.cursor import BadCursor
from taskchat.database.transaction import Statement
from taskchat.http.auth import Verifier, create_chat_verifier
from taskchat.http.gateway import MARGIN, MAX_SECONDS, lambda_handler
from taskchat.http.input import NoQuery, answer_invalid_query
from taskchat.http.middleware import answer_safely, limit_body
from taskchat.http.person import Caller
from taskchat.http.problems import answer_routing_error
from taskchat.http.telemetry import PERSON_PATH
from taskchat.limits import Limits
from taskchat.process import Process, run_concurrently, start
from taskchat.tasks import toolset
from taskchat.tasks.routes import router as domain_routes
from taskchat.version import VERSION


class ChatProcess(Process):
    """The objects that requests to the chat function share."""

    @cached_property
    def verifier(self) -> Verifier:
        """Return the verifier of chat tokens, which keeps public keys between requests. Raises SettingsError."""
        return create_chat_verifier(self.settings)

    @cached_property
    def turns(self) -> RunningTurns:
        settings, agent = self.settings, ChatAgent(self.settings, self.toolset, self.tools, self.credentials)
        limits = Limits("chat", settings.turn_burst, settings.turns_per_minute, settings.daily_model_tokens)
        runner = TurnRunner(self.database, agent, settings.history_tokens, settings.deletions_per_turn, limits)
        return RunningTurns(runner)

    @property
    def statements(self) -> list[Statement]:
        return [*super().statements, *reading.STATEMENTS, *deletion.STATEMENTS, *running.STATEMENTS]

    @cached_property
    def data_limits(self) -> Limits:
        """Return the limits of the routes on which a person reads and manages their data. They call no model."""
        return Limits("data", self.settings.data_burst, self.settings.data_requests_per_minute)

    def get_ready(self) -> None:
        """Open what the first request would wait for: connection, keys, tools. Raises SettingsError."""
        agent = self.turns.runner.agent
        run_concurrently(self.connect, self.verifier.keys.fetch_ahead)
        asyncio.get_event_loop().run_until_complete(agent.list_tools())

    async def close(self) -> None:
        if "turns" in vars(self):
            await self.turns.close()
        await super().close()


router: Final = APIRouter()
ChatId = Annotated[str, Path(description="The id of the chat, which is the conversation's id or stands for it.")]


@router.post(
    f"{PERSON_PATH}/chat",
    response_model=ChatResponse,
    summary="Send a message",
    tags=["chat"],
    responses=CHAT_RESPONSES,
    openapi_extra=CHAT_REQUEST,
)
async def send_message(caller: Caller, request: Request, response: Response) -> ChatResponse | Response:
    """Do what the message asks for. Return the reply, and each tool call of the turn, or stream them as they come."""
    asked = await read_asked(request, caller.user_id)
    turn_id, turns = turn_id_for(caller.user_id, asked.key), request.app.state.process.turns
    with deadline.default(MAX_SECONDS - MARGIN):
        if asked.encoder:
            return EventResponse(await turns.stream(caller.user_id, turn_id, asked.request), asked.encoder())
        result: TurnResult = await turns.run(caller.user_id, turn_id, asked.request)
    if result.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return result.response


@router.get(
    f"{PERSON_PATH}/chat/{{id}}/stream",
    response_class=Response,
    summary="Resume a turn",
    tags=["chat"],
    responses=RESUME_RESPONSES,
)
async def resume_turn(caller: Caller, id: ChatId, request: Request, _query: NoQuery) -> Response:
    """Return the events of the turn that runs in the conversation, from the first one, or 204 if none runs."""
    conversation_id = conversation_id_of(caller.user_id, id)
    with caller.transaction() as session:
        turn_id = running.running_turn(session, caller.user_id, conversation_id)
    if turn_id is None:
        return Response(status_code=204)
    with deadline.default(MAX_SECONDS - MARGIN):
        feed = request.app.state.process.turns.follow(caller.user_id, conversation_id, turn_id)
    return EventResponse(feed, AiSdkEncoder())


@router.get("/health", summary="Check health", tags=["health"], responses=HEALTH_RESPONSES)
async def check_health() -> Health:
    """Return 200 while the process answers. It needs no token and no database, which a scanner would keep awake."""
    return Health(status="ok")


DATA_ROUTERS: Final = (conversation_routes.router, personal_data_routes.router, domain_routes)
"""The routes on which a person reads and manages their own data, the domain's last. Their names are operation ids."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Close the process's connections when a server stops. Lambda freezes an environment and throws it away instead."""
    yield
    await app.state.process.close()


def create_app(process: ChatProcess) -> DescribedApi:
    """Return the chat API. Nothing is opened before a request needs it."""
    app = DescribedApi(
        title="taskchat",
        version=VERSION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
        middleware=[Middleware(answer_safely), Middleware(limit_body, max_bytes=MAX_CLIENT_LIST)],
        exception_handlers={
            HTTPException: answer_routing_error,
            RequestValidationError: answer_invalid_query,
            BadCursor: answer_invalid_query,
        },
        lifespan=_lifespan,
    )
    app.state.process = process
    app.include_router(router)
    for routes in DATA_ROUTERS:
        app.include_router(routes, prefix=PERSON_PATH, responses=DATA_RESPONSES)
    return app


process: Final = ChatProcess(toolset)
app: Final = create_app(process)
handler: Final = lambda_handler(app, lifespan="off")
start(process)  # on Lambda only: settings, connection, keys and tools are ready before the first request
