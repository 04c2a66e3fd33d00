"""Do in the browser what a person does, and find the parts of the page by their names."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Thread
from typing import Any

import httpx2
import psycopg
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Response, expect

from tests.browser.names import PERSON

Rows = psycopg.Connection[dict[str, Any]]

REFUSED = "Failed to load resource"
"""Chromium's own line for each request that fails. Tests of such requests expect it."""


class Chat:
    """One tab with the chat page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.message = page.get_by_role("textbox", name="Message", exact=True)
        self.log = page.get_by_role("log", name="Conversation")
        self.tasks = page.get_by_role("region", name="Tasks")
        self.conversations = page.get_by_role("navigation", name="Conversations")
        self.send_button = self.button("Send")
        self.stop_button = self.button("Stop")
        self.retry_button = self.button("Retry")

    def button(self, name: str) -> Locator:
        """Return the button of this name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def send(self, text: str) -> None:
        """Write a message and send it."""
        self.message.fill(text)
        self.message.press("Enter")

    def say(self, text: str, answer: str) -> None:
        """Send a message, and wait for the answer and the end of the turn."""
        self.send(text)
        self.expect_end(answer)

    def expect_end(self, answer: str) -> None:
        """Wait for the answer and the end of the turn."""
        self.expect(answer)
        expect(self.stop_button).to_have_count(0)

    def expect(self, *texts: str) -> None:
        """Wait until the conversation shows these texts, in any order."""
        for text in texts:
            expect(self.log).to_contain_text(text)

    def expect_once(self, *texts: str) -> None:
        """Wait until the conversation shows each of these texts once."""
        for text in texts:
            expect(self.log.get_by_text(text, exact=True)).to_have_count(1)


@dataclass
class Person:
    """A user of the page, their browser, and what Postgres holds of them."""

    id: str
    url: str
    context: BrowserContext
    rows: Rows
    faults: list[str] = field(default_factory=list)
    """Errors on the console, exceptions, violations of the policy, and files of the page that are not there."""
    expected: tuple[str, ...] = ()
    """Beginnings of faults that the test provokes."""

    def __post_init__(self) -> None:
        """Watch every page of the browser."""
        self.context.on("console", self._note_line)
        self.context.on("weberror", lambda error: self._note(f"exception: {error.error}"))
        self.context.on("response", self._note_missing_file)
        self.context.expose_binding("noteViolation", lambda _, text: self._note(f"policy: {text}"))
        self.context.add_init_script(
            "addEventListener('securitypolicyviolation', (event) =>"
            " noteViolation(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`))"
        )

    def open(self, conversation_id: str = "") -> Chat:
        """Open the page in a new tab."""
        chat = Chat(self.context.new_page())
        chat.page.goto(f"{self.url}/#{conversation_id}")
        expect(chat.message).to_be_editable()
        return chat

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        """Send a request to the API without the browser, as another device does."""
        with httpx2.Client(base_url=self.url, trust_env=False, timeout=30) as device:
            token = device.get("/dev/token", headers={"Cookie": f"{PERSON}={self.id}"}).json()["token"]
            sent = {"Authorization": f"Bearer {token}"} | {
                name.replace("_", "-"): value for name, value in headers.items()
            }
            return device.request(method, f"/api/{self.id}{path}", json=body, headers=sent)

    def new_conversation(self, message: str, **more: str) -> str:
        """Begin a conversation without the browser, and return its id."""
        return str(self.call("POST", "/chat", {"message": message, **more}).json()["conversation_id"])

    @contextlib.contextmanager
    def sending(self, body: Any) -> Iterator[None]:
        """Let another device send a message while the block runs, and wait for its answer at the end."""
        thread = Thread(target=self.call, args=["POST", "/chat", body])
        thread.start()
        yield
        thread.join()

    def conversations(self) -> list[str]:
        """Return the ids of the person's conversations in Postgres, the oldest first."""
        found = self.rows.execute("select id from conversation where user_id = %s order by created_at", [self.id])
        return [str(row["id"]) for row in found]

    def refuse_turns(self, seconds: int) -> None:
        """Let the person have no turns left for this time, and the minute in which all come back."""
        query = "update allowance set full_at = now() + %s where user_id = %s and door = 'chat'"
        self.rows.execute(query, [timedelta(seconds=60 + seconds), self.id])

    def has_ended(self) -> bool:
        """Return whether Postgres has a reply to each message."""
        query = "select count(*) filter (where role = 'user') = count(*) filter (where role = 'assistant') as ended"
        found = self.rows.execute(f"{query} from message where user_id = %s", [self.id]).fetchone()
        return bool(found and found["ended"])

    def titles(self) -> list[str]:
        """Return the titles of the person's tasks in Postgres."""
        found = self.rows.execute("select title from task where user_id = %s order by id", [self.id])
        return [row["title"] for row in found]

    def messages(self) -> list[str]:
        """Return the messages of the person in Postgres."""
        query = "select content from message where user_id = %s and role = 'user' order by created_at, position"
        return [row["content"] for row in self.rows.execute(query, [self.id])]

    def calls(self) -> list[str]:
        """Return the tools that were called for the person."""
        query = "select tool from tool_call where user_id = %s order by created_at"
        return [row["tool"] for row in self.rows.execute(query, [self.id])]

    def _note_line(self, line: ConsoleMessage) -> None:
        if line.type in ("error", "warning") and not line.text.startswith(REFUSED):
            self._note(f"{line.type}: {line.text}")

    def _note_missing_file(self, response: Response) -> None:
        if response.status >= 400 and f"/api/{self.id}" not in response.url:
            self._note(f"{response.status} {response.url}")

    def _note(self, fault: str) -> None:
        if not fault.startswith(self.expected):
            self.faults.append(fault)
