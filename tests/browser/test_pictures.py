"""Take the pictures of the documentation from the running page. `make screenshots` writes them to docs/page."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from dev.standin_model.client import StandIn
from dev.state import ROOT
from tests.browser.conftest import Rows
from tests.browser.person import Chat, Person
from tests.browser.test_phone import PHONE

PICTURES = ROOT / "docs" / "page"
WRITE = "SCREENSHOTS"
"""The variable with which the pictures of the documentation are written anew."""
LARGEST = 150_000
"""Bytes of a picture at most: a clone has them all."""
NOON = "2026-11-25T12:00:00Z"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
KINDS: dict[str, dict[str, Any]] = {
    "desktop-light": {**DESKTOP, "color_scheme": "light"},
    "desktop-dark": {**DESKTOP, "color_scheme": "dark"},
    "phone": {**PHONE, "viewport": {"width": 390, "height": 760}, "device_scale_factor": 2},
}
CALLS = [
    {"name": "add_task", "arguments": {"title": "call mum", "due": "2026-11-26T18:00"}},
    {"name": "add_task", "arguments": {"title": "dentist", "due": "2026-11-27T09:00"}},
]
FIRST = {"Trip to Lisbon": "Add book the train and find a hotel", "Household": "Add buy milk and water the plants"}
ADDED = "I added **call mum** for tomorrow at 18:00, and the **dentist** for Friday at 9:00."
LEFT = """The milk is done. What is left:

- **call mum**, tomorrow at 18:00
- **dentist**, Friday at 9:00
- book the train, find a hotel and water the plants, without a date"""


def rename(person: Person, conversation: str, title: str) -> None:
    """Give a conversation a title."""
    person.call("PATCH", f"/conversations/{conversation}", {"title": title})


def fill(person: Person, standin: StandIn, rows: Rows) -> str:
    """Hold the conversations of the pictures, at fixed times. Return the id of the last one."""
    standin.fault("call", calls=CALLS, match="dentist")
    standin.fault("say", text=ADDED, match="dentist", after_calls=2)
    standin.fault("say", text=LEFT, match="tell me", after_calls=2)
    for title, message in FIRST.items():
        rename(person, person.new_conversation(message), title)
    last = person.new_conversation("Call mum tomorrow at 18, and the dentist is on Friday at 9", timezone="UTC")
    rename(person, last, "This week")
    person.call("POST", "/chat", {"message": "Finish the milk and tell me what is left", "conversation_id": last})
    for hours, conversation in enumerate(reversed(person.conversations())):
        rows.execute(
            "update conversation set updated_at = %s::timestamptz - make_interval(hours => %s) where id = %s",
            [NOON, 5 * hours, conversation],
        )
    rows.execute("update message set created_at = %s where user_id = %s", [NOON, person.id])
    return last


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_the_page(
    kind: str, new_person: Callable[..., Person], site: str, standin: StandIn, rows: Rows, tmp_path: Path
) -> None:
    """It shows a conversation with the conversations and the tasks beside it, and is small."""
    person = new_person(site, timezone_id="UTC", locale="en-GB", reduced_motion="reduce", **KINDS[kind])
    last = fill(person, standin, rows)
    person.context.clock.set_fixed_time(NOON)
    chat = person.open(last)
    chat.expect("Finished buy milk", "The milk is done")
    if kind.startswith("desktop"):
        expect(chat.tasks).to_contain_text("dentist")
        expect(chat.conversations.get_by_role("link")).to_have_count(3)
    path = (PICTURES if WRITE in os.environ else tmp_path) / f"{kind}.png"
    take(chat, path)
    assert path.stat().st_size < LARGEST
    assert (PICTURES / path.name).exists()


def take(chat: Chat, path: Path) -> None:
    """Write a picture of the window, without the caret."""
    path.parent.mkdir(exist_ok=True)
    chat.page.screenshot(path=path, caret="hide", animations="disabled")
