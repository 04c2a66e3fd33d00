"""A person leaves in the middle of a turn, by Stop, a reload, "back" or a closed tab. Nothing is lost or doubled."""

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Route, expect

from dev import processes
from dev.standin_model.client import StandIn
from tests.browser.person import Chat, Person

SECONDS = 15
Leave = Callable[[Person, Chat], Chat]


def reload(person: Person, chat: Chat) -> Chat:
    """Reload the page."""
    chat.page.reload()
    return chat


def back_and_forward(person: Person, chat: Chat) -> Chat:
    """Go back, and forward again."""
    chat.page.go_back()
    chat.page.go_forward()
    return chat


def another_site_and_back(person: Person, chat: Chat) -> Chat:
    """Go to another page in the same tab, and back."""
    chat.page.goto("about:blank")
    chat.page.go_back()
    return chat


def close(person: Person, chat: Chat) -> Chat:
    """Close the tab, and open a new one."""
    address = chat.page.url
    chat.page.close()
    return person.open(address.partition("#")[2])


leaving = pytest.mark.parametrize("leave", [reload, back_and_forward, another_site_and_back, close])


def expect_one_turn(person: Person, chat: Chat) -> None:
    """Wait for the answer, and check that the message was taken once."""
    chat.expect("Added slow walk")
    expect(chat.log.get_by_text("Add a slow walk", exact=True)).to_have_count(1)
    assert (person.titles(), person.messages()) == (["slow walk"], ["Add a slow walk"])
    assert len(person.conversations()) == 1
    chat.page.reload()
    chat.expect("Added slow walk")
    expect(chat.log.get_by_text("Add a slow walk", exact=True)).to_have_count(1)


@leaving
def test_before_the_request_leaves(alice: Person, leave: Leave) -> None:
    """The network holds the request back until the person has left: the server never sees it."""
    chat = alice.open()
    held: list[Route] = []
    chat.page.route("**/chat", lambda route: held.append(route))
    with chat.page.expect_request("**/chat"):
        chat.send("Add a slow walk")
    assert alice.messages() == []
    chat.page.unroute("**/chat")
    expect_one_turn(alice, leave(alice, chat))


@leaving
def test_while_the_model_thinks(alice: Person, standin: StandIn, leave: Leave) -> None:
    """The server goes on, and the page picks the turn up."""
    standin.fault("hang", match="slow")
    chat = alice.open()
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    chat = leave(alice, chat)
    chat.expect("Add a slow walk")
    standin.release()
    expect_one_turn(alice, chat)


@leaving
def test_while_the_answer_comes(alice: Person, standin: StandIn, leave: Leave) -> None:
    """The call is done, and the first words are there."""
    standin.fault("pause", match="slow", after_calls=1, pieces=1)
    chat = alice.open()
    chat.send("Add a slow walk")
    chat.expect("Added slow walk")
    chat = leave(alice, chat)
    chat.expect("Add a slow walk")
    standin.release()
    expect_one_turn(alice, chat)


@leaving
def test_after_the_answer(alice: Person, leave: Leave) -> None:
    """The history comes from the server."""
    chat = alice.open()
    chat.say("Add a slow walk", "Added slow walk (")
    expect_one_turn(alice, leave(alice, chat))


@leaving
def test_while_the_page_is_away(alice: Person, standin: StandIn, leave: Leave) -> None:
    """The turn ends before the person is back."""
    standin.fault("hang", match="slow")
    chat = alice.open()
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    waits = chat.page.url
    chat.page.goto("about:blank")
    standin.release()
    assert any(alice.has_ended() for _ in processes.attempts(SECONDS))
    chat.page.goto(waits)
    expect_one_turn(alice, leave(alice, chat))


def test_stop_leaves_and_the_turn_can_be_picked_up(alice: Person, standin: StandIn) -> None:
    """The page says that the server goes on. The answer shows when the person asks for it."""
    standin.fault("hang", match="slow")
    chat = alice.open()
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    chat.stop_button.click()
    chat.expect("You stopped waiting")
    expect(chat.message).to_be_focused()
    standin.release()
    chat.button("Show the answer").click()
    expect_one_turn(alice, chat)


def test_escape_stops(alice: Person, standin: StandIn) -> None:
    """The keyboard needs no way to the button."""
    standin.fault("hang", match="slow")
    chat = alice.open()
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    chat.message.press("Escape")
    chat.expect("You stopped waiting")
    standin.release()
    chat.page.reload()
    chat.expect("Add a slow walk")


def test_an_unsent_text_outlives_a_reload(alice: Person) -> None:
    """It belongs to its tab: another one begins without it. A sent text does not come back."""
    chat = alice.open()
    chat.message.fill("Add tea")
    chat.page.reload()
    expect(chat.message).to_have_value("Add tea")
    expect(alice.open().message).to_have_value("")
    chat.message.press("Enter")
    chat.expect_end("Added tea")
    chat.page.reload()
    chat.expect("Added tea")
    expect(chat.message).to_have_value("")


@pytest.mark.parametrize("body", ["null", "not JSON", '{"text": "no message"}'])
def test_a_damaged_item_of_the_storage_is_passed_over(alice: Person, body: str) -> None:
    """The page starts, and takes messages."""
    chat = alice.open()
    item = [f"taskchat:message:{alice.id}:damaged", json.dumps({"key": "damaged", "body": body})]
    chat.page.evaluate("([name, value]) => localStorage.setItem(name, value)", item)
    chat.page.reload()
    expect(chat.message).to_be_editable()
    chat.say("Add tea", "Added tea")


def test_back_goes_to_the_conversation_before(alice: Person) -> None:
    """Each conversation has an address of its own, without a text of the person."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.button("New conversation").click()
    expect(chat.log).not_to_contain_text("Added tea")
    chat.say("Add salt", "Added salt")
    first, second = alice.conversations()
    assert chat.page.url.endswith(f"#{second}")
    chat.page.go_back()
    chat.page.go_back()
    chat.expect("Added tea")
    assert chat.page.url.endswith(f"#{first}")
    expect(chat.log).not_to_contain_text("Added salt")
