"""The understudy of the model, for the rehearsal of a turn with all five tools."""

import asyncio
import json
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

Json = dict[str, Any]

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_ID: Final = re.compile(rb'\\"id\\":(\d+)')
"""Where the model reads the id of the task that was added before it."""


class Call(NamedTuple):
    """One tool call that the understudy makes."""

    id: str
    tool: str
    arguments: Json


Calls = list[Call]


class Model:
    """The model's understudy: an HTTP server in this process. It adds a task, uses the other tools on it, and is done.

    Over HTTP, so that the client's connections, its parser and its lazy imports have been through it too.
    """

    def __init__(self, api: str) -> None:
        """`api` is the one it speaks, as in MODEL_API."""
        self._write = {"responses": _response, "chat_completions": _completion}[api]

    @contextmanager
    def playing(self) -> Iterator[str]:
        """Serve in the block; gives the address."""
        loop = asyncio.get_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        try:
            yield "http://{}:{}".format(*server.sockets[0].getsockname())
        finally:
            server.close()
            loop.run_until_complete(server.wait_closed())

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answer one request, and hang up."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        answer = json.dumps(self._write(json.loads(body), *_next(body))).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _next(body: bytes) -> tuple[Calls, str | None]:
    """What the model calls or says next, by what it has heard of its calls."""
    ids = _ID.findall(body)
    if not ids:
        return [Call("call_0", "add_task", {"title": "rehearse"})], None
    if len(ids) > 1:
        return [], "Done."
    this = {"task_id": int(ids[0])}
    return [
        Call("call_1", "list_tasks", {}),
        Call("call_2", "list_tasks", {"status": "pending"}),
        Call("call_3", "update_task", this | {"title": "rehearsed"}),
        Call("call_4", "complete_task", this),
        Call("call_5", "delete_task", this),
    ], None


def _response(body: Json, calls: Calls, text: str | None) -> Json:
    """An answer with every field that the vendor's has: the client builds a parser for each when it first sees it."""
    unset = ("instructions", "max_output_tokens", "previous_response_id", "prompt_cache_key")
    repeated: Json = {**dict.fromkeys(unset), "store": False, "tools": [], "model": ""}
    return {
        "id": "resp_0",
        "object": "response",
        "created_at": 0,
        "completed_at": 0,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "top_p": 1.0,
        "truncation": "disabled",
        **{name: body.get(name, default) for name, default in repeated.items()},
        "output": [_REASONING, *map(_function_call, calls), *([_message(text)] if text else [])],
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2,
        },
    }


_REASONING: Final = {"type": "reasoning", "id": "rs_0", "summary": [], "encrypted_content": "opaque"}


def _function_call(call: Call) -> Json:
    named = {"id": f"fc_{call.id}", "call_id": call.id, "name": call.tool, "arguments": json.dumps(call.arguments)}
    return {"type": "function_call", "status": "completed", **named}


def _message(text: str) -> Json:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "id": "msg_0", "role": "assistant", "status": "completed", "content": [part]}


def _completion(body: Json, calls: Calls, text: str | None) -> Json:
    """The same on the other API."""
    message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if calls:
        named = [{"name": call.tool, "arguments": json.dumps(call.arguments)} for call in calls]
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": function}
            for call, function in zip(calls, named, strict=True)
        ]
    finish_reason = "tool_calls" if calls else "stop"
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "service_tier": "default",
        "system_fingerprint": None,
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "total_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
    }
