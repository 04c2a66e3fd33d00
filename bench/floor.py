"""The floor: the same route written by hand for speed alone, with the Agents SDK, function tools and psycopg.

It verifies the token, stores the conversation and adds the task in three statements. It has no lease, no record of
calls, no row-level security, no replay, no deadline and no error handling. Do not deploy it.
"""

import os
from contextvars import ContextVar
from typing import Any, Final
from uuid import UUID, uuid4

import jwt
import psycopg
from agents import Agent, OpenAIResponsesModel, RunConfig, Runner, function_tool, set_tracing_disabled
from fastapi import FastAPI, Header, HTTPException
from mangum import Mangum
from openai import AsyncOpenAI
from pydantic import BaseModel

MAX_MESSAGES: Final = 100

_BEGIN: Final = """
with existing as (
    select position, role, content from message
    where user_id = %(user)s and conversation_id = %(id)s order by position desc limit %(most)s
), created as (
    insert into conversation (user_id, id, title) values (%(user)s, %(id)s, '') on conflict do nothing
), stored as (
    insert into message (user_id, conversation_id, position, turn_id, role, content)
    select %(user)s, %(id)s, coalesce(max(position) + 1, 0), %(turn)s, 'user', %(text)s from existing
)
select position, role, content from existing order by position"""
_ADD: Final = "insert into task (user_id, title) values (%s, %s) returning id"
_ANSWER: Final = (
    "insert into message (user_id, conversation_id, position, turn_id, role, content)"
    " values (%s, %s, %s, %s, 'assistant', %s)"
)

set_tracing_disabled(True)
app: Final = FastAPI(openapi_url=None)
handler: Final = Mangum(app, lifespan="off")
_connection: Final = psycopg.connect(os.environ["FLOOR_URL"], autocommit=True, prepare_threshold=None)
_user: ContextVar[str] = ContextVar("user")
_audience: Final = os.environ["AUTH_AUDIENCE"]
_key: Final = jwt.PyJWKSet.from_json(os.environ["AUTH_JWKS_JSON"]).keys[0]


class Message(BaseModel):
    """One message of a user."""

    message: str
    conversation_id: UUID | None = None


@function_tool
async def add_task(title: str) -> str:
    """Add one task to the list."""
    row = _connection.execute(_ADD, [_user.get(), title]).fetchone()
    assert row
    return f'{{"id":{row[0]},"title":"{title}","completed":false}}'


_agent: Final = Agent[None](
    name="floor",
    instructions="You keep one person's task list.",
    tools=[add_task],
    model=OpenAIResponsesModel(model="stand-in", openai_client=AsyncOpenAI(max_retries=0)),
)


@app.post("/api/{user_id}/chat")
async def chat(user_id: str, body: Message, authorization: str = Header()) -> dict[str, Any]:
    """Run one turn."""
    claims = jwt.decode(authorization.removeprefix("Bearer "), _key, algorithms=["EdDSA"], audience=_audience)
    if claims["sub"] != user_id:
        raise HTTPException(403)
    _user.set(user_id)
    here, turn = body.conversation_id or uuid4(), uuid4()
    wanted = {"user": user_id, "id": here, "turn": turn, "text": body.message, "most": MAX_MESSAGES}
    earlier = _connection.execute(_BEGIN, wanted).fetchall()
    items: list[Any] = [{"role": role, "content": content} for _, role, content in earlier]
    items.append({"role": "user", "content": body.message})
    result = await Runner.run(_agent, items, run_config=RunConfig(tracing_disabled=True))
    position = earlier[-1][0] + 2 if earlier else 1
    _connection.execute(_ANSWER, [user_id, here, position, turn, result.final_output])
    return {"conversation_id": here, "response": result.final_output, "tool_calls": ["add_task"]}
