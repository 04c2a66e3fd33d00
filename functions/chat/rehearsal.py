"""The understudy of the model, for the rehearsal of a turn with all five tools."""

import asyncio
import json
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

Json = dict[str, Any]
Calls = list[tuple[str, Json]]

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_ID: Final = re.compile(rb'\\"id\\":(\d+)')
"""Where the model reads the id of the task that was added before it."""


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
        answer = json.dumps(self._write(*_next(body))).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _next(body: bytes) -> tuple[Calls, str | None]:
    """What the model calls or says next, by what it has heard of its calls."""
    ids = _ID.findall(body)
    if not ids:
        return [("add_task", {"title": "rehearse"})], None
    if len(ids) > 1:
        return [], "Done."
    this = {"task_id": int(ids[0])}
    return [
        ("list_tasks", {}),
        ("list_tasks", {"status": "pending"}),
        ("update_task", this | {"title": "rehearsed"}),
        ("complete_task", this),
        ("delete_task", this),
    ], None


def _response(calls: Calls, text: str | None) -> Json:
    said = {"type": "message", "id": "msg", "role": "assistant", "status": "completed"}
    items: list[Json] = [
        {"type": "function_call", "call_id": f"call{index}", "name": name, "arguments": json.dumps(arguments)}
        for index, (name, arguments) in enumerate(calls)
    ]
    if text:
        items = [said | {"content": [{"type": "output_text", "text": text, "annotations": []}]}]
    return {
        "id": "resp",
        "object": "response",
        "created_at": 0,
        "model": "understudy",
        "status": "completed",
        "output": items,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2,
        },
    }


def _completion(calls: Calls, text: str | None) -> Json:
    message: Json = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"call{index}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for index, (name, arguments) in enumerate(calls)
        ]
    return {
        "id": "chatcmpl",
        "object": "chat.completion",
        "created": 0,
        "model": "understudy",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
