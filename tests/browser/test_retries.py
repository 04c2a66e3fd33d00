"""A turn fails, or may not begin: the page says what was done and what to do, and a retry does each effect once."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from playwright.sync_api import expect

from dev.standin_model.client import StandIn
from tests.browser.names import HURRIED
from tests.browser.person import Person
from tests.proxy import Proxy

LONG = 3600
"""Seconds for which the database refuses connections, unless the test lets it accept them again."""


@pytest.fixture(autouse=True)
def reset_database(database: Proxy) -> Iterator[None]:
    """Accept connections again after each test."""
    yield
    database.accept_again()


def test_a_failed_model_can_be_retried(alice: Person, standin: StandIn) -> None:
    """The call before the failure stays done, and is not done again."""
    standin.fault("server_error", match="bread", after_calls=1, times=None)
    chat = alice.open()
    chat.send("Add bread")
    chat.expect("Added bread", "stays done")
    expect(chat.retry_button).to_be_enabled()
    standin.reset()
    chat.retry_button.click()
    chat.expect("Added bread (")
    expect(chat.retry_button).to_have_count(0)
    assert (alice.titles(), alice.messages(), alice.calls()) == (["bread"], ["Add bread"], ["add_task"])


def test_a_failure_outlives_a_reload(alice: Person, standin: StandIn) -> None:
    """The message and its Retry are there again, and a retry does it once."""
    standin.fault("server_error", match="bread", times=None)
    chat = alice.open()
    chat.send("Add bread")
    expect(chat.retry_button).to_be_enabled()
    chat.page.reload()
    chat.expect("Add bread")
    standin.reset()
    chat.retry_button.click()
    chat.expect("Added bread (")
    assert (alice.titles(), alice.messages()) == (["bread"], ["Add bread"])


def test_an_answer_that_breaks_off_can_be_retried(alice: Person, standin: StandIn) -> None:
    """The stream ends in `failed` after its first words."""
    standin.fault("break_off", match="bread", after_calls=1, pieces=1)
    chat = alice.open()
    chat.send("Add bread")
    expect(chat.retry_button).to_be_enabled()
    chat.retry_button.click()
    chat.expect("Added bread (")
    expect(chat.retry_button).to_have_count(0)
    assert (alice.titles(), alice.calls()) == (["bread"], ["add_task"])


def test_a_failed_message_need_not_be_retried(alice: Person, standin: StandIn) -> None:
    """The next message goes on. The first one can still be retried."""
    standin.fault("server_error", match="bread", times=None)
    chat = alice.open()
    chat.send("Add bread")
    expect(chat.retry_button).to_be_enabled()
    chat.say("Add salt", "Added salt")
    standin.reset()
    chat.retry_button.click()
    chat.expect("Added bread (")
    assert alice.titles() == ["salt", "bread"]


def test_a_turn_without_time_can_be_retried(site: str, new_person: Callable[..., Person], standin: StandIn) -> None:
    """504: what was done stays, and the retry goes on from there."""
    alice = new_person(site, f"{HURRIED}{uuid4().hex}")
    standin.fault("hang", match="bread", after_calls=1)
    chat = alice.open()
    chat.send("Add bread")
    expect(chat.retry_button).to_be_enabled()
    chat.expect("stays done")
    standin.reset()
    chat.retry_button.click()
    chat.expect("Added bread (")
    assert (alice.titles(), alice.calls()) == (["bread"], ["add_task"])


def test_a_busy_conversation_is_waited_for(alice: Person, standin: StandIn) -> None:
    """409: another device runs a turn. The page counts down, and sends the message when the turn has ended."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    conversation = alice.conversations()[0]
    standin.fault("hang", match="slow")
    with alice.sending({"message": "Add a slow walk", "conversation_id": conversation}):
        assert standin.waiting(at_least=1) == 1
        chat.send("Add salt")
        chat.expect("Retry in")
        assert alice.titles() == ["tea"]
        standin.release()
    chat.expect("Added salt")
    assert sorted(alice.titles()) == ["salt", "slow walk", "tea"]
    assert sorted(alice.messages()) == ["Add a slow walk", "Add salt", "Add tea"]


def test_too_many_turns_are_counted_down(alice: Person) -> None:
    """429: Retry is there and waits for its time. Then it works."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    alice.refuse_turns(seconds=4)
    chat.send("Add salt")
    chat.expect("Retry in 3 s", "Nothing was done")
    expect(chat.retry_button).to_be_disabled()
    chat.expect("Retry in 1 s")
    expect(chat.retry_button).to_be_enabled()
    chat.retry_button.click()
    chat.expect("Added salt")
    assert alice.titles() == ["tea", "salt"]


def test_a_server_without_its_database_is_waited_for(alice: Person, database: Proxy) -> None:
    """503: nothing was done. The waiting time is counted down, and Retry works once the database is back."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    database.refuse(LONG)
    chat.send("Add salt")
    chat.expect("Retry in", "Nothing was done")
    database.accept_again()
    expect(chat.retry_button).to_be_enabled()
    chat.retry_button.click()
    chat.expect("Added salt")
    assert alice.titles() == ["tea", "salt"]
