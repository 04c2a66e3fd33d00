"""A conversation of 300 turns stays light: the work for a word or a key does not grow with it."""

import json
from typing import Any
from uuid import uuid4

from playwright.sync_api import Browser, Page, expect

from dev.standin_model.client import StandIn
from tests.browser.conftest import Rows
from tests.browser.person import Chat, Person

TURNS = 300
WORDS = 120
COUNT_CHANGES = """() => {
    globalThis.changes = { earlier: 0, last: 0 };
    const last = () => document.querySelector('[role="log"]').lastElementChild;
    new MutationObserver((records) => {
        for (const { target } of records) changes[last().contains(target) ? "last" : "earlier"] += 1;
    }).observe(document.querySelector('[role="log"]'), { subtree: true, childList: true, characterData: true });
}"""


def store_turns(rows: Rows, user_id: str, number: int) -> str:
    """Store a conversation of so many turns, and return its id."""
    conversation = str(uuid4())
    rows.execute(
        "insert into conversation (user_id, id, title, next_position) values (%s, %s, 'A long one', %s)",
        [user_id, conversation, 2 * number],
    )
    rows.execute(
        """insert into message (user_id, conversation_id, position, turn_id, role, content)
        select %(user)s, %(id)s::uuid, n, md5(%(id)s::text || n / 2)::uuid,
            case n %% 2 when 0 then 'user' else 'assistant' end,
            case n %% 2 when 0 then 'Message ' || n / 2 else '**Answer** ' || n / 2 || ' with some `words` in it' end
        from generate_series(0, 2 * %(number)s - 1) n""",
        {"user": user_id, "id": conversation, "number": number},
    )
    return conversation


def open_all(alice: Person, number: int, rows: Rows) -> Chat:
    """Open a conversation of so many turns, and show them all."""
    chat = alice.open(store_turns(rows, alice.id, number))
    chat.expect(f"Answer {number - 1} ")
    shown = chat.log.get_by_role("article")
    while (before := shown.count()) < number:
        chat.button("Show earlier messages").click()
        expect(shown.nth(before)).to_be_attached()
    return chat


def count_changes(chat: Chat, standin: StandIn) -> dict[str, int]:
    """Return the changes of the document while an answer of many words comes."""
    standin.fault("drip", milliseconds=4, tokens=WORDS, match="slowly")
    chat.page.evaluate(COUNT_CHANGES)
    chat.send("Answer slowly")
    expect(chat.log.get_by_text("word word").last).to_be_visible()
    expect(chat.stop_button).to_be_hidden()
    counted: dict[str, int] = chat.page.evaluate("() => changes")
    return counted


def test_a_word_changes_only_the_last_turn(alice: Person, rows: Rows, standin: StandIn) -> None:
    """The earlier turns are not drawn again, and the last one changes no more often than words come."""
    chat = open_all(alice, TURNS, rows)
    expect(chat.log.get_by_role("article")).to_have_count(TURNS)
    changes = count_changes(chat, standin)
    assert changes["earlier"] <= 2
    assert changes["last"] <= 6 * WORDS


def laid_out(browser: Browser, page: Page, chat: Chat) -> list[tuple[int, int]]:
    """Type, and return for each layout how many objects it had to look at, of how many in all."""
    browser.start_tracing(page=page, categories=["devtools.timeline"])
    chat.message.press_sequentially("Some words that nobody sends " * 3)
    trace: list[dict[str, Any]] = json.loads(browser.stop_tracing())["traceEvents"]
    found = [
        event["args"]["beginData"] for event in trace if event["name"] == "Layout" and "beginData" in event["args"]
    ]
    return [(each["dirtyObjects"], each["totalObjects"]) for each in found]


def test_a_key_lays_out_a_small_part(alice: Person, rows: Rows, browser: Browser) -> None:
    """The browser looks at the box, and not at 300 turns."""
    chat = open_all(alice, TURNS, rows)
    layouts = laid_out(browser, chat.page, chat)
    assert layouts
    assert max(dirty for dirty, _ in layouts) < 100


def test_the_newest_turns_come_first(alice: Person, rows: Rows) -> None:
    """The end of the conversation is in sight, and the earlier turns are read when the person asks."""
    chat = alice.open(store_turns(rows, alice.id, TURNS))
    expect(chat.log.get_by_text(f"Message {TURNS - 1}", exact=True)).to_be_in_viewport()
    expect(chat.log.get_by_text("Message 0", exact=True)).to_have_count(0)


def test_earlier_turns_that_cannot_be_read_are_said(alice: Person, rows: Rows) -> None:
    """The same button reads them once the server answers again."""
    chat = alice.open(store_turns(rows, alice.id, TURNS))
    expect(chat.log.get_by_text(f"Message {TURNS - 1}", exact=True)).to_be_in_viewport()
    alice.context.set_offline(True)
    chat.button("Show earlier messages").click()
    expect(chat.log.get_by_role("alert")).to_contain_text("They cannot be read now")
    alice.context.set_offline(False)
    shown = chat.log.get_by_role("article")
    before = shown.count()
    chat.button("Show earlier messages").click()
    expect(shown.nth(before)).to_be_attached()
    expect(chat.log.get_by_role("alert")).to_be_empty()
