"""The connection is lost: the message is kept, sent again when the connection is back, and done once."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from dev.standin_model.client import StandIn
from tests import proxy
from tests.browser.person import Person
from tests.proxy import Proxy


def test_a_message_without_a_network_is_sent_later(alice: Person) -> None:
    """The browser is offline when the person sends. It goes by itself when it is online."""
    chat = alice.open()
    alice.context.set_offline(True)
    chat.send("Add bread")
    chat.expect("The server does not answer", "Your message is kept")
    alice.context.set_offline(False)
    chat.expect("Added bread (")
    assert (alice.titles(), alice.messages()) == (["bread"], ["Add bread"])


def test_a_message_without_a_network_can_be_discarded(alice: Person) -> None:
    """It is sent neither now nor by the next tab."""
    chat = alice.open()
    alice.context.set_offline(True)
    chat.send("Add bread")
    chat.button("Discard").click()
    expect(chat.log).not_to_contain_text("Add bread")
    alice.context.set_offline(False)
    chat.say("Add salt", "Added salt")
    assert alice.messages() == ["Add salt"]


def test_a_message_without_a_network_outlives_the_tab(alice: Person) -> None:
    """The next tab sends it."""
    chat = alice.open()
    alice.context.set_offline(True)
    chat.send("Add bread")
    chat.expect("The server does not answer")
    address = chat.page.url.partition("#")[2]
    chat.page.close()
    alice.context.set_offline(False)
    chat = alice.open(address)
    chat.expect("Added bread (")
    assert (alice.titles(), alice.messages()) == (["bread"], ["Add bread"])


class TestACutConnection:
    """A proxy between the browser and the server cuts connections."""

    @pytest.fixture
    def network(self, site: str) -> Iterator[Proxy]:
        """Run the proxy."""
        with proxy.running(site) as made:
            yield made

    @pytest.fixture
    def alice(self, site: str, network: Proxy, new_person: Callable[..., Person]) -> Person:
        """Return a person whose browser goes through the proxy."""
        return new_person(network.url(f"{site}/").rstrip("/"))

    def test_in_the_middle_of_a_turn(self, alice: Person, network: Proxy, standin: StandIn) -> None:
        """The page takes the turn up again by itself."""
        standin.fault("hang", match="bread", after_calls=1)
        chat = alice.open()
        chat.send("Add bread")
        chat.expect("Added bread")
        assert standin.waiting(at_least=1) == 1
        network.abandon_connections(close=True)
        standin.release()
        chat.expect("Added bread (")
        expect(chat.retry_button).to_have_count(0)
        assert (alice.titles(), alice.messages(), alice.calls()) == (["bread"], ["Add bread"], ["add_task"])

    def test_after_the_request_and_before_the_answer(self, alice: Person, network: Proxy) -> None:
        """The server has done it, and the answer never comes. The retry gets it, and does nothing twice."""
        chat = alice.open()
        network.lose_answer_to = b"idempotency-key"
        chat.send("Add bread")
        chat.expect("Added bread (")
        assert network.lost == 1
        assert (alice.titles(), alice.messages(), alice.calls()) == (["bread"], ["Add bread"], ["add_task"])

    def test_the_page_says_that_nobody_answers(self, alice: Person, network: Proxy) -> None:
        """A person may retry at once, before the page does."""
        chat = alice.open()
        network.refuse(3600)
        chat.send("Add bread")
        chat.expect("The server does not answer")
        network.accept_again()
        chat.retry_button.click()
        chat.expect("Added bread (")
        assert (alice.titles(), alice.messages()) == (["bread"], ["Add bread"])
