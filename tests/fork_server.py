"""`python -m tests.fork_server FD`: forks execution environments, fast and from a clean process.

It has imported and exercised everything, and then let go of it: it has no thread, no event loop and no connection, so
each child starts as a cold environment does and shares nothing with another. (pytest's own process has threads.)

It speaks JSON over the socket it is given, one question at a time: `warm`, `start` (with the child's own socket passed
along), `signal`, `await`. It ends with its parent, and its children end with it.
"""

import asyncio
import gc
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from dev import processes
from testing.gateway import Handler, invoke
from tests.crash_points import Points, Trap

Json = dict[str, Any]
LARGEST = 1 << 20


def main() -> None:
    """Answer questions until the other side is gone."""
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
    """Do one turn, so that what is built at first use is built, and drop all that must not be inherited."""
    os.environ.update(environment)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # or Mangum would make one, and what an import makes is never collected
    from chat.app import handler
    from tests.conftest import forget

    response = invoke(handler, event)
    forget()
    loop.run_until_complete(loop.shutdown_default_executor())
    for _ in processes.attempts(10):  # the HTTP client's helper thread hears of its end only in the loop
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
    """How many sockets this process holds, where the system tells."""
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
    """The children that have not ended: only to these may a signal go, for another's number can be used again."""
    for child in list(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.remove(child)
    return children


def _signal(child: int, number: signal.Signals, children: set[int]) -> Json:
    """Send the signal, and return once a stop or an end has come to be. `ended` if it had before."""
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
    """Return once a child that is about to stop or to end by itself has."""
    if child in children and not os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1]):
        children.remove(child)
    return {}


def _serve(environment: Json, channel: socket.socket) -> None:
    """Be an execution environment: one request at a time, until nobody asks any more."""
    processes.leave_with_parent(signal.SIGKILL)
    os.environ.update(environment)
    asyncio.set_event_loop(asyncio.new_event_loop())

    def tell(answer: Json) -> None:
        channel.sendall(json.dumps(answer).encode() + b"\n")

    points = Points(tell)
    points.install()
    with channel.makefile("rb") as questions:
        for line in questions:
            try:
                tell(_handle(json.loads(line), points))
            except Exception:
                tell({"error": traceback.format_exc()})


def _handle(question: Json, points: Points) -> Json:
    trap = question["trap"]
    handler = _route(question["event"])
    points.begin(trap and Trap(signal.Signals(trap["number"]), trap["at"], trap["on"], trap["level"]))
    response = invoke(handler, question["event"], seconds=question["seconds"])
    passed = points.end()
    told = {"status": response.status, "headers": response.headers, "body": response.body, "passed": passed}
    return told | {"peak_memory": _peak_memory()}


def _peak_memory() -> int:
    """Return the most bytes of memory that this process has had at once. Linux counts in KiB, macOS in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _route(event: Json) -> Handler:
    """The function that the gateway would hand the event to."""
    if event["rawPath"] == "/mcp":
        from mcp_tools.app import handler
    else:
        from chat.app import handler
    return handler


if __name__ == "__main__":
    os.environ["POWERTOOLS_SERVICE_NAME"] = os.environ["POWERTOOLS_METRICS_NAMESPACE"] = "taskchat"
    main()
