"""A turn fails, or may not begin: the page says what was done and what to do, and a retry does each effect once."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from tests import proxy
from tests.browser.conftest import Start
from tests.browser.names import TURN_SECONDS
from tests.browser.person import Person
from tests.proxy import Proxy

NewPerson = Callable[..., Person]
LONG = 3600
"""Seconds for which the database refuses connections, unless the test lets it accept them again."""


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


def test_a_turn_without_time_can_be_retried(start: Start, new_person: NewPerson, standin: StandIn) -> None:
    """504: what was done stays, and the retry goes on from there."""
    with start(**{TURN_SECONDS: "4"}) as url:
        alice = new_person(url)
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


def test_too_many_turns_are_counted_down(start: Start, new_person: NewPerson, standin: StandIn) -> None:
    """429: Retry is there and waits for its time. Then it works."""
    with start(TURN_BURST="1", TURNS_PER_MINUTE="20") as url:
        alice = new_person(url)
        chat = alice.open()
        chat.say("Add tea", "Added tea")
        chat.send("Add salt")
        chat.expect("Retry in 2 s", "Nothing was done")
        expect(chat.retry_button).to_be_disabled()
        expect(chat.retry_button).to_be_enabled()
        chat.retry_button.click()
        chat.expect("Added salt")
        assert alice.titles() == ["tea", "salt"]


class TestWithoutItsDatabase:
    """The server cannot reach Postgres."""

    @pytest.fixture
    def database(self, server: Postgres) -> Iterator[Proxy]:
        """Run a proxy before Postgres."""
        with proxy.running(server.app_url) as made:
            yield made

    @pytest.fixture
    def url(self, start: Start, server: Postgres, database: Proxy) -> Iterator[str]:
        """Serve the page, with that proxy as its database."""
        with start(DATABASE_URL=database.url(server.app_url)) as url:
            yield url

    def test_the_waiting_time_is_counted_down(self, url: str, new_person: NewPerson, database: Proxy) -> None:
        """503: nothing was done, and Retry works once the database is back."""
        alice = new_person(url)
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
