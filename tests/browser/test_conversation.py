"""A person holds a conversation."""

from tests.browser.person import Person


def test_a_whole_conversation(alice: Person) -> None:
    """Adding, listing and finishing."""
    chat = alice.open()
    chat.send("Add buy milk")
    chat.expect("Added buy milk")
    assert alice.titles() == ["buy milk"]
