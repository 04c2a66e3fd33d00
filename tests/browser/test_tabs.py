"""A person has the page open twice: in two tabs, or on two devices. Both are true, and nothing happens twice."""

from collections.abc import Callable

from playwright.sync_api import expect

from dev.standin_model.client import StandIn
from tests.browser.person import Person


def test_the_other_tab_shows_the_turn(alice: Person) -> None:
    """It shows the message, the answer and the task."""
    one = alice.open()
    one.say("Add tea", "Added tea")
    other = alice.open(alice.conversations()[0])
    other.expect("Added tea")
    one.say("Add salt", "Added salt")
    other.expect("Add salt", "Added salt")
    expect(other.tasks).to_contain_text("salt")
    assert alice.messages() == ["Add tea", "Add salt"]


def test_the_other_tab_shows_a_turn_that_runs(alice: Person, standin: StandIn) -> None:
    """It shows that a turn runs, and its answer in the end. The turn runs once."""
    one = alice.open()
    one.say("Add tea", "Added tea")
    other = alice.open(alice.conversations()[0])
    standin.fault("hang", match="slow")
    one.send("Add a slow walk")
    other.expect("Add a slow walk")
    expect(other.log.get_by_text("Working").or_(other.log.get_by_text("Sending")).first).to_be_visible()
    assert standin.waiting(at_least=1) == 1
    standin.release()
    for tab in (one, other):
        tab.expect("Added slow walk")
        expect(tab.log.get_by_text("Add a slow walk", exact=True)).to_have_count(1)
    assert (alice.titles(), alice.messages()) == (["tea", "slow walk"], ["Add tea", "Add a slow walk"])


def test_both_tabs_send_at_once(alice: Person, standin: StandIn) -> None:
    """The conversation does one after the other, and each once."""
    one = alice.open()
    one.say("Add tea", "Added tea")
    other = alice.open(alice.conversations()[0])
    other.expect("Added tea")
    standin.fault("hang", match="slow")
    one.message.fill("Add a slow walk")
    other.message.fill("Add salt")
    one.message.press("Enter")
    assert standin.waiting(at_least=1) == 1
    other.message.press("Enter")
    other.expect("Add salt")
    standin.release()
    for tab in (one, other):
        tab.expect("Added slow walk", "Added salt")
        expect(tab.log.get_by_text("Add salt", exact=True)).to_have_count(1)
    assert alice.titles() == ["tea", "slow walk", "salt"]
    assert sorted(alice.messages()) == ["Add a slow walk", "Add salt", "Add tea"]


def test_a_tab_takes_over_from_one_that_is_closed(alice: Person, standin: StandIn) -> None:
    """The turn goes on, and its answer comes in the tab that is left."""
    one = alice.open()
    one.say("Add tea", "Added tea")
    other = alice.open(alice.conversations()[0])
    standin.fault("hang", match="slow")
    one.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    one.page.close()
    other.expect("Add a slow walk")
    standin.release()
    other.expect("Added slow walk")
    assert (alice.titles(), alice.messages()) == (["tea", "slow walk"], ["Add tea", "Add a slow walk"])


def test_another_device_finds_the_conversation(alice: Person, site: str, new_person: Callable[..., Person]) -> None:
    """Nothing of a conversation is in the browser. Both devices may go on with it."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    telephone = new_person(site, alice.id).open()
    telephone.conversations.get_by_role("link", name="Add tea").click()
    telephone.expect("Added tea")
    telephone.say("Add salt", "Added salt")
    chat.page.reload()
    chat.expect("Added tea", "Added salt")
    assert alice.titles() == ["tea", "salt"]


def test_another_device_shows_a_turn_that_runs(
    alice: Person, site: str, new_person: Callable[..., Person], standin: StandIn
) -> None:
    """It shows the answer when it is there, without a reload."""
    standin.fault("hang", match="slow")
    chat = alice.open()
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    telephone = new_person(site, alice.id).open(alice.conversations()[0])
    telephone.expect("Add a slow walk", "Working")
    standin.release()
    telephone.expect("Added slow walk")
    assert alice.messages() == ["Add a slow walk"]
