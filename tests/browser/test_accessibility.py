"""axe-core finds no rule broken, in light and dark, on a desktop and on a telephone, in the main states."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from dev.standin_model.client import StandIn
from tests.browser import accessibility
from tests.browser.person import Chat, Person
from tests.browser.test_phone import PHONE

SIZES: dict[str, dict[str, Any]] = {"desktop": {"viewport": {"width": 1280, "height": 800}}, "phone": PHONE}


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    """Name the size of the window."""
    return str(request.param)


@pytest.fixture(params=["light", "dark"])
def chat(request: pytest.FixtureRequest, new_person: Callable[..., Person], site: str, size: str) -> Chat:
    """Open the page with axe-core in it."""
    alice = new_person(site, color_scheme=request.param, **SIZES[size])
    accessibility.prepare(alice)
    return alice.open()


def test_no_rule_is_broken(chat: Chat, size: str, standin: StandIn) -> None:
    """Empty, in a conversation with an open call, with each drawer, in a dialog, while it waits, after a failure."""
    page, told = chat.page, "**Bold**, `code`, [a link](https://example.com)\n\n- one\n- two\n\n> said\n\n    code"
    assert accessibility.violations(page) == []
    standin.fault("say", text=told, match="format")
    chat.say("Add buy milk and call mum tomorrow at 9", "Added buy milk")
    chat.say("Finish 999", "I could not finish 999")
    chat.say("Show the format", "Bold")
    chat.log.get_by_text("Added buy milk", exact=True).first.click()
    assert accessibility.violations(page) == []
    if size == "phone":
        chat.button("Tasks").click()
        assert accessibility.violations(page) == []
        page.keyboard.press("Escape")
        chat.button("Conversations").click()
        assert accessibility.violations(page) == []
    chat.conversations.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert accessibility.violations(page) == []
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    chat.button("Erase my data").click()
    assert accessibility.violations(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    standin.fault("hang", match="slow")
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    chat.expect("Working")
    assert accessibility.violations(page) == []
    standin.release()
    chat.expect_end("Added slow walk (")
    standin.fault("server_error", match="bread", after_calls=1, times=None)
    chat.send("Add bread")
    expect(chat.retry_button).to_be_enabled()
    assert accessibility.violations(page) == []
