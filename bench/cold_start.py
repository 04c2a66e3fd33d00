"""One cold start of the chat function, in the process that this file is run in: bench/cold.py starts it.

It has the built artifact and Lambda's Python in sight and nothing else, so it can import nothing of ours from here. It
reads events as JSON, has the handler answer one after the other, and writes how long everything took, in milliseconds.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast


class Context:
    """What the handler is told of an invocation."""

    function_name, function_version, memory_limit_in_mb = "chat", "1", 1024
    invoked_function_arn, aws_request_id = "arn:aws:lambda:eu-west-1:123456789012:function:chat", "0"

    def get_remaining_time_in_millis(self) -> int:
        """As long as a function has."""
        return 29_000


def main() -> None:
    """Start, answer, and tell."""
    events = json.loads(sys.stdin.read())
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")
    spans = {"Python": _since_the_process_began()}
    began = time.perf_counter()
    from taskchat import lifecycle

    in_one, begin = lifecycle._freshly, cast(Any, lifecycle)
    begin._freshly = lambda _: None  # it is done below, in its parts
    from chat import app

    begin._freshly = in_one
    spans["imports"] = _since(began)
    spans |= _get_ready(app, begin)
    turns = [_timed(partial(_answer, app.handler, event)) for event in events]
    answers.write(json.dumps({"spans": spans | {"the first turn": turns[0]}, "turns": turns}))
    answers.flush()
    os._exit(0)


def _get_ready(app: Any, lifecycle: Any) -> dict[str, float]:
    """As `get_ready` does it, step by step."""
    spans: dict[str, float] = {}

    def step(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> None:
            spans[name] = _timed(lambda: function(*arguments))

        return timed

    lifecycle.side_by_side = step("connection and keys", lifecycle.side_by_side)
    lifecycle.attempt = step("rehearsal", lifecycle.attempt)
    whole = _timed(lambda: lifecycle._freshly(app.get_ready))
    in_order = {name: spans[name] for name in ("connection and keys", "rehearsal")}
    return {"settings, clients, tools": whole - sum(in_order.values())} | in_order


def _answer(handler: Callable[..., Any], event: dict[str, Any]) -> None:
    response = handler(event, Context())
    if response["statusCode"] != 200:
        raise RuntimeError(response["body"])


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return _since(began)


def _since(began: float) -> float:
    return 1000 * (time.perf_counter() - began)


def _since_the_process_began() -> float:
    """By the system's clock, in which it notes when a process begins (Linux)."""
    with open("/proc/self/stat") as stat:
        ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as uptime:
        return 1000 * (float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))


if __name__ == "__main__":
    main()
