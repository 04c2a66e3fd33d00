"""The page on a telephone, by keyboard only, and with a very long conversation."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from dev.standin_model.client import StandIn
from tests.browser.person import Chat, Person

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
TARGET = 44
"""Least width and height, in CSS pixels, of what a finger aims at."""
SMALL_TARGETS = """(least) => [...document.querySelectorAll("button, a[href], summary, input, textarea")]
    .filter((each) => !each.closest("[inert], .reply p, .reply li")) // a link within a text has the text's height
    .filter((each) => each.checkVisibility({ visibilityProperty: true }))
    .map((each) => [each, each.getBoundingClientRect()])
    .filter(([, { width, height }]) => (width < least || height < least) && width > 1)
    .map(([each, { width, height }]) => `${each.ariaLabel ?? each.textContent.trim()}: ${width} x ${height}`)"""
FOCUSED = """() => {
    const focused = document.activeElement;
    const frame = focused.closest("form:focus-within") ?? focused; // the box's frame shows that the box has the focus
    const [{ outlineStyle }, { boxShadow }] = [focused, frame].map((each) => getComputedStyle(each));
    return [focused.outerHTML.slice(0, 99), outlineStyle !== "none" || boxShadow.includes("0px 0px 0px 3px")];
}"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def check_layout(page: Page) -> None:
    """Check that nothing is wider than the window, and that a finger meets everything."""
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate(SMALL_TARGETS, TARGET) == []


@pytest.fixture
def telephone(new_person: Callable[..., Person], site: str) -> Person:
    """Return a person with a telephone."""
    return new_person(site, **PHONE)


def test_a_telephone_shows_everything(telephone: Person, standin: StandIn) -> None:
    """Long words, a table and code do not widen the page; each drawer opens and closes."""
    standin.fault(
        "say", text="x" * 300 + "\n\n| a | b |\n|---|---|\n| " + "y" * 90 + " | c |\n\n    " + "z" * 200, match="long"
    )
    chat = telephone.open()
    check_layout(chat.page)
    chat.say("Add buy milk and call mum tomorrow", "Added buy milk")
    chat.say("Show something long " + "w" * 200, "xxx")
    check_layout(chat.page)
    chat.log.get_by_text("Added buy milk", exact=True).first.click()
    check_layout(chat.page)
    for name, area in (("Conversations", chat.conversations), ("Tasks", chat.tasks)):
        chat.button(name).click()
        expect(area).to_be_in_viewport()
        check_layout(chat.page)
        chat.page.keyboard.press("Escape")
        expect(area).not_to_be_in_viewport()
    chat.button("Conversations").click()
    chat.button("New conversation").click()
    expect(chat.message).to_be_in_viewport()
    expect(chat.log).not_to_contain_text("Added buy milk")


def test_a_failure_fits_on_a_telephone(telephone: Person, standin: StandIn) -> None:
    """Its buttons too."""
    standin.fault("server_error", match="bread", after_calls=1, times=None)
    chat = telephone.open()
    chat.send("Add bread")
    expect(chat.retry_button).to_be_in_viewport()
    check_layout(chat.page)


def test_a_dialog_fits_on_a_telephone(telephone: Person) -> None:
    """Also with a long title."""
    chat = telephone.open()
    chat.say("Add " + "w" * 150, "Added")
    chat.button("Conversations").click()
    chat.conversations.get_by_role("button", name="Delete").click()
    expect(chat.page.get_by_role("dialog")).to_be_in_viewport()
    check_layout(chat.page)


def press_until_focused(page: Page, chat: Chat, name: str) -> None:
    """Press Tab until the button of this name has the focus."""
    for _ in range(60):
        if page.evaluate("() => document.activeElement.ariaLabel ?? document.activeElement.textContent") == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not come to {name}")


def test_the_keyboard_is_enough(alice: Person) -> None:
    """A person writes, sends, opens a call's JSON, starts anew, goes back, and deletes, without a pointer."""
    chat = alice.open()
    page = chat.page
    expect(chat.message).to_be_focused()
    page.keyboard.type("Add tea")
    page.keyboard.press("Enter")
    chat.expect("Added tea (")
    expect(chat.message).to_be_focused()
    press_until_focused(page, chat, "Added tea")
    page.keyboard.press("Enter")
    expect(chat.log.get_by_text('"tool": "add_task"')).to_be_visible()
    press_until_focused(page, chat, "New conversation")
    page.keyboard.press("Enter")
    expect(chat.message).to_be_focused()
    expect(chat.log).not_to_contain_text("Added tea")
    press_until_focused(page, chat, "Delete Add tea")
    page.keyboard.press("Enter")
    press_until_focused(page, chat, "Delete")
    page.keyboard.press("Enter")
    expect(chat.conversations.get_by_role("link")).to_have_count(0)
    assert alice.conversations() == []


def test_the_focus_is_always_seen(alice: Person) -> None:
    """Each element that Tab comes to has an outline, or a frame."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    seen = set()
    for _ in range(30):
        chat.page.keyboard.press("Tab")
        name, shows = chat.page.evaluate(FOCUSED)
        seen.add(name)
        assert shows or name.startswith("<body"), name
    assert len(seen) > 8


def test_nothing_moves_for_a_person_who_wants_no_motion(
    new_person: Callable[..., Person], site: str, standin: StandIn
) -> None:
    """Also while the page waits."""
    standin.fault("hang", match="slow")
    chat = new_person(site, reduced_motion="reduce").open()
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    chat.expect("Working")
    assert (
        chat.page.evaluate("() => document.getAnimations().filter((each) => each.playState === 'running').length") == 0
    )
    standin.release()
    chat.expect("Added slow walk")
