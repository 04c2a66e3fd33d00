"""A person holds a conversation: it needs no manual, and shows what is done as it is done."""

from collections.abc import Callable

from playwright.sync_api import expect

from dev import client
from dev.standin_model.client import StandIn
from tests.browser.person import Person


def test_a_whole_conversation(alice: Person) -> None:
    """A person adds, lists and finishes. Each call is a line in words, and its JSON is behind the line."""
    chat = alice.open()
    chat.say("Add buy milk and call mum", "Added buy milk")
    expect(chat.tasks).to_contain_text("buy milk")
    expect(chat.tasks).to_contain_text("call mum")
    chat.say("What is left?", "Left to do:")
    chat.say("Finish the milk", "Finished buy milk")
    expect(chat.tasks.get_by_text("buy milk")).to_be_hidden()
    call = chat.log.get_by_role("group").filter(has_text="Finished buy milk")
    expect(call.get_by_text('"tool": "complete_task"')).to_be_hidden()
    call.get_by_text("Finished buy milk").click()
    expect(call.get_by_text('"tool": "complete_task"')).to_be_visible()
    assert alice.titles() == ["buy milk", "call mum"]
    assert alice.calls() == ["add_task", "add_task", "list_tasks", "list_tasks", "complete_task"]
    assert alice.messages() == ["Add buy milk and call mum", "What is left?", "Finish the milk"]


def test_the_development_token_is_enough(site: str, new_person: Callable[..., Person]) -> None:
    """A developer opens the page of `make dev`, and is its person."""
    developer = new_person(site, client.token(site)["user_id"])
    developer.context.clear_cookies()
    developer.open().say("Add water the plants", "Added water the plants")
    assert developer.titles() == ["water the plants"]


def test_the_first_sign_comes_before_the_model(alice: Person, standin: StandIn) -> None:
    """The message stands there at once, with the time that has passed. Nothing says that it is done."""
    standin.fault("hang", match="slow")
    chat = alice.open()
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    chat.expect("Add a slow walk", "Working", "1 s", "2 s")
    expect(chat.stop_button).to_be_visible()
    standin.release()
    chat.expect("Added slow walk")
    expect(chat.log.get_by_text("Working")).to_have_count(0)


def test_words_and_calls_show_as_they_come(alice: Person, standin: StandIn) -> None:
    """The call's line stands there while the model still writes, and so do its first words."""
    standin.fault("pause", match="bread", after_calls=1, pieces=2)
    chat = alice.open()
    chat.send("Add bread")
    chat.expect("Added bread")
    expect(chat.tasks).to_contain_text("bread")
    assert standin.waiting(at_least=1) == 1
    expect(chat.stop_button).to_be_visible()
    standin.release()
    expect(chat.stop_button).to_be_hidden()
    expect(chat.log.locator(".reply:visible")).to_have_count(1)


def test_a_failed_call_is_said_in_words(alice: Person) -> None:
    """The line says what could not be done, and the reply is there too."""
    chat = alice.open()
    chat.say("Finish 999", "I could not finish 999")
    chat.expect("Could not finish task 999")


def test_a_suggestion_is_sent_by_a_click(alice: Person) -> None:
    """A new person need not think of a first message."""
    chat = alice.open()
    chat.button("Add buy milk").click()
    chat.expect("Added buy milk")
    expect(chat.button("Add buy milk")).to_have_count(0)
    assert alice.titles() == ["buy milk"]


def test_arrow_up_recalls_a_message(alice: Person) -> None:
    """The newest first; arrow-down goes back to an empty box."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.say("Add salt", "Added salt")
    for key, text in [("ArrowUp", "Add salt"), ("ArrowUp", "Add tea"), ("ArrowDown", "Add salt"), ("ArrowDown", "")]:
        chat.message.press(key)
        expect(chat.message).to_have_value(text)


def test_an_edited_message_is_a_new_one(alice: Person) -> None:
    """The first one and its effect stay."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.log.get_by_role("button", name="Edit").click()
    expect(chat.message).to_have_value("Add tea")
    chat.say("Add green tea", "Added green tea")
    assert alice.messages() == ["Add tea", "Add green tea"]
    assert alice.titles() == ["tea", "green tea"]


def test_an_answer_is_copied(alice: Person) -> None:
    """The clipboard has the text of the answer."""
    alice.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.log.get_by_role("button", name="Copy").click()
    expect(chat.log.get_by_text("Copied")).to_be_visible()
    assert "Added tea" in str(chat.page.evaluate("() => navigator.clipboard.readText()"))


def test_markdown_is_drawn_and_markup_is_text(alice: Person, standin: StandIn) -> None:
    """A model that was led astray can put neither a script nor a picture into the page."""
    hostile = (
        "**Bold** and `code`\n\n- one\n- two\n\n"
        "<img src=x onerror=alert(1)> ![p](https://example.com/p.png) [link](javascript:alert(1)) [good](https://example.com)"
    )
    standin.fault("say", text=hostile, match="format")
    chat = alice.open()
    chat.say("Show the format", "Bold")
    expect(chat.log.locator("strong")).to_have_text("Bold")
    expect(chat.log.locator(".reply code")).to_have_text("code")
    expect(chat.log.get_by_role("listitem")).to_have_text(["one", "two"])
    chat.expect("<img src=x onerror=alert(1)>")
    expect(chat.log.locator("img")).to_have_count(0)
    links = chat.log.get_by_role("link").evaluate_all("(all) => all.map((each) => each.getAttribute('href'))")
    assert links == ["https://example.com/p.png", "https://example.com"]


def test_markdown_that_is_too_deep_is_shown_as_it_is(alice: Person, standin: StandIn) -> None:
    """The page goes on: a text that no parser can nest so deep stops no other turn."""
    standin.fault("say", text=">" * 10_000 + "bottom", match="deep")
    chat = alice.open()
    chat.say("How deep is it?", "bottom")
    expect(chat.log.get_by_role("button", name="Copy")).to_be_visible()
    chat.say("Add tea", "Added tea")


def test_text_of_the_right_goes_from_the_right(alice: Person, standin: StandIn) -> None:
    """A message, the reply and a task each have the direction of their own text."""
    standin.fault("call", calls=[{"name": "add_task", "arguments": {"title": "לקנות חלב"}}], match="חלב")
    standin.fault("say", text="הוספתי.", match="חלב", after_calls=1)
    chat = alice.open()
    chat.message.fill("להוסיף לקנות חלב")
    expect(chat.message).to_have_css("direction", "rtl")
    chat.say("להוסיף לקנות חלב", "הוספתי.")
    for text in (
        chat.log.get_by_text("להוסיף לקנות חלב"),
        chat.log.get_by_text("הוספתי."),
        chat.tasks.get_by_text("לקנות חלב"),
    ):
        expect(text).to_have_css("direction", "rtl")


def test_enter_while_a_turn_runs_says_why_nothing_is_sent(alice: Person, standin: StandIn) -> None:
    """The text stays, and the hint goes when the answer is there."""
    standin.fault("hang", match="slow")
    chat = alice.open()
    chat.send("Add a slow walk")
    assert standin.waiting(at_least=1) == 1
    chat.send("Add tea")
    hint = chat.page.locator("#hint")
    expect(hint).to_be_visible()
    expect(hint).to_contain_text("An answer is on its way.")
    expect(chat.page.get_by_role("status").filter(has_text="An answer is on its way.")).to_have_count(1)
    expect(chat.message).to_have_value("Add tea")
    standin.release()
    chat.expect_end("Added slow walk")
    expect(hint).to_be_hidden()
    chat.message.press("Enter")
    chat.expect_end("Added tea")
    assert alice.messages() == ["Add a slow walk", "Add tea"]


def test_shift_and_enter_begin_a_line(alice: Person) -> None:
    """Enter sends, and a message may have several lines."""
    chat = alice.open()
    chat.message.press_sequentially("Add tea")
    chat.message.press("Shift+Enter")
    chat.message.press_sequentially("Add salt")
    chat.message.press("Enter")
    chat.expect("Added tea")
    expect(chat.message).to_have_value("")
    assert alice.messages() == ["Add tea\nAdd salt"]
