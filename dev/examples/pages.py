"""Build the example pages, serve them, and take one turn in each with a browser."""

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from signal import SIGTERM
from typing import Final

from playwright.sync_api import Error, Page

from dev import backend, chromium, node, processes
from dev.examples.running import install, run
from dev.proof import ProofError

NAMES: Final = ("usechat", "assistant-ui")
TURN_MS: Final = 30_000
MESSAGE: Final = "Add buy milk"
REPLY: Final = "Added buy milk"


def use(name: str, known: Mapping[str, str]) -> None:
    """Build the page and take one turn in it. Raises ProofError."""
    home = install(name)
    run(["npm", "run", "build"], known, cwd=home)
    with _serving(home, known) as address, chromium.running() as browser:
        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        try:
            _take_turn(page, address)
        except Error as error:
            raise ProofError(f"{name}: {error}\n{faults}\n{page.content()}") from error
        if faults:
            raise ProofError(f"{name}: the page reported {faults}")


def _take_turn(page: Page, address: str) -> None:
    """Send a message, and wait for the tool call and the reply. Raises playwright's Error."""
    page.goto(address)
    page.get_by_role("textbox", name="Message").fill(MESSAGE)
    page.get_by_role("button", name="Send").click()
    log = page.get_by_role("log", name="Conversation")
    log.get_by_text(REPLY).wait_for(timeout=TURN_MS)
    log.get_by_text("add_task").wait_for(timeout=TURN_MS)


@contextlib.contextmanager
def _serving(home: Path, known: Mapping[str, str]) -> Iterator[str]:
    """Serve the built page with Vite, which passes the API's paths on. Raises StartupError."""
    port = processes.free_port(backend.HOST)
    program = home / "node_modules" / "vite" / "bin" / "vite.js"
    command = [node.program(), program, "preview", "--host", backend.HOST, "--port", str(port), "--strictPort"]
    process = processes.spawn(command, output=subprocess.DEVNULL, cwd=home, env=node.environment() | dict(known))
    try:
        processes.wait_until_listening(process, backend.HOST, port)
        yield f"http://{backend.HOST}:{port}/"
    finally:
        processes.stop(process, SIGTERM)
