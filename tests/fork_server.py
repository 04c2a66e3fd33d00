"""`python -m tests.fork_server FD`: fork execution environments, fast and from a clean process.

The process has imported everything and taken a turn. Then it has dropped its threads, its event loop and its
connections. So each child starts as a cold environment does, and shares nothing with another. (pytest's own process has
threads.)

The process answers one JSON question at a time over its socket: `warm`, `start` (which passes the child's socket
along), `signal`, `await`. It ends with its parent, and its children end with it.
"""

import asyncio
import base64
import gc
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from dev import processes
from testing.gateway import Handler, Response, invoke
from tests.crash_points import CrashPoints, Trap

Json = dict[str, Any]
LARGEST = 1 << 20


def main() -> None:
    """Answer questions until the other end closes the socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    processes.leave_with_parent(signal.SIGKILL)
    children: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, LARGEST, 1)
        if not message:
            break
        question = json.loads(message)
        try:
            answer = _answer(question, descriptors, children, control)
        except Exception:
            answer = {"error": traceback.format_exc()}
        control.sendall(json.dumps(answer).encode() + b"\n")
    for child in _living(children):
        os.kill(child, signal.SIGKILL)


def _answer(question: Json, descriptors: list[int], children: set[int], control: socket.socket) -> Json:
    if question["do"] == "warm":
        return _warm(question["environment"], question["event"])
    if question["do"] == "signal":
        return _signal(question["pid"], signal.Signals(question["signal"]), children)
    if question["do"] == "await":
        return _await(question["pid"], children)
    return _start(question["environment"], descriptors[0], children, control)


def _warm(environment: Json, event: Json) -> Json:
    """Take one turn, which builds what is built at first use, and drop what a child must not inherit."""
    os.environ.update(environment)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # else Mangum makes a loop at import, which nothing closes
    from chat.app import handler
    from tests.conftest import reset_processes

    response = invoke(handler, event)
    reset_processes()
    loop.run_until_complete(loop.shutdown_default_executor())
    for _ in processes.attempts(10):  # the HTTP client's helper thread ends only while the loop runs
        loop.run_until_complete(asyncio.sleep(0))
        if threading.active_count() == 1:
            break
    asyncio.set_event_loop(None)
    loop.close()
    gc.collect()
    gc.freeze()
    return {
        "status": response.status,
        "threads": [thread.name for thread in threading.enumerate()],
        "sockets": _sockets(),
    }


def _sockets() -> int:
    """Return the number of this process's sockets, or 1 on a system without /proc."""
    if not os.path.isdir("/proc/self/fd"):
        return 1
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.islink(link))


def _start(environment: Json, descriptor: int, children: set[int], control: socket.socket) -> Json:
    _living(children)
    child = os.fork()
    if child == 0:
        try:
            control.close()
            _serve(environment, socket.socket(fileno=descriptor))
        finally:
            os._exit(0)
    os.close(descriptor)
    children.add(child)
    return {"pid": child}


def _living(children: set[int]) -> set[int]:
    """Return the children that have not ended. Another process may get the id of a child that has ended."""
    for child in list(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.remove(child)
    return children


def _signal(child: int, number: signal.Signals, children: set[int]) -> Json:
    """Send the signal, and return when the child has stopped or ended. `ended` says that it had ended before."""
    if child not in _living(children):
        return {"ended": True}
    os.kill(child, number)
    if number == signal.SIGSTOP:
        os.waitpid(child, os.WUNTRACED)
    if number == signal.SIGKILL:
        os.waitpid(child, 0)
        children.remove(child)
    return {"ended": False}


def _await(child: int, children: set[int]) -> Json:
    """Return when a child that gets a signal from itself has stopped or ended."""
    if child in children and not os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]):
        children.remove(child)
    return {}


def _serve(environment: Json, channel: socket.socket) -> None:
    """Handle one request at a time, as an execution environment, until the socket closes.

    The variables RENEW_SECONDS and RECYCLE_AFTER are for tests only: the program has constants of these names.
    """
    from taskchat.conversations import renewal
    from taskchat.database import engine
    from tests.conftest import reset_processes

    processes.leave_with_parent(signal.SIGKILL)
    os.environ.update(environment)
    asyncio.set_event_loop(asyncio.new_event_loop())
    renewal.RENEW_SECONDS = float(environment.get("RENEW_SECONDS", renewal.RENEW_SECONDS))  # type: ignore[misc]  # a Final, which only tests change
    if "RECYCLE_AFTER" in environment:
        engine._POOL["pool_recycle"] = float(environment["RECYCLE_AFTER"])
        reset_processes()  # makes new engines

    def send(answer: Json) -> None:
        channel.sendall(json.dumps(answer).encode() + b"\n")

    crash_points = CrashPoints(send)
    crash_points.install()
    with channel.makefile("rb") as questions:
        for line in questions:
            try:
                send(_handle(json.loads(line), crash_points, send))
            except Exception:
                send({"error": traceback.format_exc()})


def _handle(question: Json, crash_points: CrashPoints, send: Callable[[Json], None]) -> Json:
    trap = question["trap"]
    handler = _route(question["event"])
    crash_points.begin(trap and Trap(signal.Signals(trap["number"]), trap["at"], trap["on"], trap["level"]))
    if question["is_streamed"]:
        response = _stream(question["event"], question["seconds"], partial(_show, crash_points, send))
    else:
        response = invoke(handler, question["event"], seconds=question["seconds"])
    passed = crash_points.end()
    answer = {"status": response.status, "headers": response.headers, "body": response.body, "passed": passed}
    return answer | {"peak_memory": _peak_memory()}


def _stream(event: Json, seconds: float, show: Callable[[str], None]) -> Response:
    """Have the app answer in this process's loop, and show each part of the body when it is sent."""
    from chat.app import app
    from taskchat import deadline

    parts, head = [], Json()

    async def receive() -> Json:
        if "asked" in head:
            await asyncio.Event().wait()  # the client stays
        head["asked"] = True
        return {"type": "http.request", "body": base64.b64decode(event["body"])}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
            return
        parts.append(message["body"].decode())
        show(parts[-1])

    with deadline.within(seconds):
        asyncio.get_event_loop().run_until_complete(app(_scope(event), receive, send))
    headers = {name.decode(): value.decode() for name, value in head["headers"]}
    return Response(head["status"], headers, "".join(parts))


def _scope(event: Json) -> Json:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "https",
        "method": event["requestContext"]["http"]["method"],
        "path": event["rawPath"],
        "query_string": event["rawQueryString"].encode(),
        "headers": [(name.encode(), value.encode()) for name, value in event["headers"].items()],
    }


def _show(crash_points: CrashPoints, send: Callable[[Json], None], body: str) -> None:
    """Send the events of a part to the test one by one. There is a crash point before and after each."""
    for frame in body.removesuffix("\n\n").split("\n\n"):
        name = _name_of(frame)
        crash_points.reach(f'stream: before "{name}"')
        send({"shown": f"{frame}\n\n"})
        crash_points.reach(f'stream: after "{name}"')


def _name_of(frame: str) -> str:
    """Return the name of the event in a frame of any protocol."""
    if frame.startswith("event: "):
        return frame.partition("\n")[0].removeprefix("event: ")
    data = frame.removeprefix("data: ")
    return str(json.loads(data)["type"]) if data.startswith("{") else data


def _peak_memory() -> int:
    """Return the peak memory of this process in bytes. Linux counts in KiB, macOS in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _route(event: Json) -> Handler:
    """Return the handler of the function that the gateway would call."""
    if event["rawPath"] == "/mcp":
        from mcp_tools.app import handler
    else:
        from chat.app import handler
    return handler


if __name__ == "__main__":
    os.environ["POWERTOOLS_SERVICE_NAME"] = os.environ["POWERTOOLS_METRICS_NAMESPACE"] = "taskchat"
    main()
