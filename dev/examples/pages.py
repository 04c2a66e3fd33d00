"""Build the example pages, serve them, and take one turn in each with a browser."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import SIGTERM
from typing import Final

from playwright.sync_api import Error, Page

from dev import backend, chromium, client, node, processes
from dev.examples.running import install, run
from dev.proof import ProofError

NAMES: Final = ("usechat", "assistant-ui")
TURN_MS: Final = 30_000
TURNS: Final = (("Add buy milk", "add_task", "Added buy milk"), ("Show my tasks", "list_tasks", "Your tasks"))
"""The messages of a conversation, each with the tool and a part of the reply."""
FAILING, FAILURE, RETRIED = "stand-in: fail 502", "The model failed to answer.", "Simulated"
"""A message whose turn fails, the sentence that the page shows, and a part of the reply to the same request again."""


def use(name: str, known: Mapping[str, str]) -> None:
    """Build the page, and have a conversation in it. Raises ProofError."""
    home = install(name)
    run(["npm", "run", "build"], known, cwd=home)
    with _serving(home, known) as address:
        _visit(address, _take_turns)


def read_reference(known: Mapping[str, str]) -> None:
    """Read the description's page: it has a heading for each operation and each schema. Raises ProofError."""
    _, api = client.call(known["URL"], "/openapi.json")
    operations = [each["operationId"] for path in api["paths"].values() for each in path.values()]

    def look(page: Page) -> None:
        for name in (*operations, *api["components"]["schemas"]):
            page.get_by_role("heading").get_by_text(name, exact=True).wait_for(timeout=TURN_MS)

    _visit(f"{known['URL']}/reference", look)


def _visit(address: str, act: Callable[[Page], None]) -> None:
    """Open the page, and act in it. Raises ProofError, also for anything that the page reports as an error."""
    with chromium.running() as browser:
        page, faults = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        try:
            page.goto(address)
            act(page)
        except Error as error:
            raise ProofError(f"{address}: {error}\n{faults}\n{page.content()}") from error
    if faults:
        raise ProofError(f"{address}: the page reported {faults}")


def _take_turns(page: Page) -> None:
    """Have a conversation, whose last turn fails, and wait for what the page shows. Raises playwright's Error."""
    log = page.get_by_role("log", name="Conversation")
    for message, tool, reply in TURNS:
        page.get_by_role("textbox", name="Message").fill(message)
        page.get_by_role("button", name="Send").click()
        for text in (tool, reply):
            log.get_by_text(text).wait_for(timeout=TURN_MS)
    page.get_by_role("textbox", name="Message").fill(FAILING)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("alert").get_by_text(FAILURE).wait_for(timeout=TURN_MS)
    if page.get_by_role("button", name="Retry").is_visible():
        page.get_by_role("button", name="Retry").click()
        log.get_by_text(RETRIED).wait_for(timeout=TURN_MS)


@contextlib.contextmanager
def _serving(home: Path, known: Mapping[str, str]) -> Iterator[str]:
    """Serve the built page with Vite, which passes the API's paths on. Raises StartupError."""
    port = processes.free_port(backend.HOST)
    program = home / "node_modules" / "vite" / "bin" / "vite.js"
    command: list[str | Path] = [
        node.program(),
        program,
        "preview",
        "--host",
        backend.HOST,
        "--port",
        str(port),
        "--strictPort",
    ]
    process = processes.spawn(command, output=subprocess.DEVNULL, cwd=home, env=node.environment() | dict(known))
    try:
        processes.wait_until_listening(process, backend.HOST, port)
        yield f"http://{backend.HOST}:{port}/"
    finally:
        processes.stop(process, SIGTERM)
