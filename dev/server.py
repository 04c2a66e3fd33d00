"""`make dev`: start everything on this machine, say how to use it, and leave nothing running behind."""

import json
import os
import shlex
import signal
import sys
from types import FrameType

from dev import backend, client, processes, state
from dev.processes import StartupError
from dev.standin_model.domain import domain

DEFAULT_PORT = 8000
EXAMPLE = domain.examples.add_and_show
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Serve until somebody stops us. The exit code is 1 when something could not start."""
    progress = backend.Progress(sys.stdout)
    try:
        leave_when_asked()
        _serve(progress)
    except (StartupError, OSError) as error:  # a full disk, or a directory that belongs to somebody else
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.say("Stopped.")
    return 0


def leave_when_asked() -> None:
    """Let every way to ask us to stop raise KeyboardInterrupt, once: the way out is not interrupted again.

    make passes a signal on that its process group got too, so they come in pairs.
    """
    if "MAKELEVEL" in os.environ:
        processes.leave_with_parent()
    for number in STOPPING:
        signal.signal(number, _stop_once)


def _stop_once(_number: int, _frame: FrameType | None) -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _serve(progress: backend.Progress) -> None:
    port = _port()
    progress.say(f"Starting taskchat; its data is in {state.shown(state.directory())}/")
    with backend.running(port, progress, reload=True, show=progress.say) as server, state.announced(server.url):
        progress.say(_instructions(server.url))
        server.process.wait()
    raise StartupError("The server ended by itself.")


def _port() -> int:
    wanted = os.environ.get("PORT") or str(DEFAULT_PORT)
    if not wanted.isdecimal() or not 0 < int(wanted) < 2**16:
        raise StartupError(f"PORT={wanted} is not a port.")
    return int(wanted)


def _instructions(url: str) -> str:
    identity = client.token(url)
    path = f"{url}/api/{identity['user_id']}/chat"
    log = state.shown(state.directory() / "server.log")
    return f"""
  Page  {url}/
  API   {path}
  MCP   {url}/mcp (bearer token: mcp_token of {url}/dev/token)
  Log   {log}

Try it (the token is good for an hour, {url}/dev/token has a fresh one):

{curl(path, identity["token"])}

Edits under functions/ and shared/ are picked up. Ctrl-C stops everything.
"""


def curl(address: str, token: str) -> str:
    """One turn as a line to paste into a shell."""
    command = ["curl", "-sS", address, "-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json"]
    return shlex.join([*command, "-w", r"\n", "-d", json.dumps({"message": EXAMPLE})])


if __name__ == "__main__":
    sys.exit(main())
