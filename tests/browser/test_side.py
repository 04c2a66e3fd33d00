"""Beside the chat: the person's conversations, their tasks, and their data."""

import json
import re
from pathlib import Path

from playwright.sync_api import expect

from dev.state import ROOT
from tests import personal_data
from tests.browser.conftest import Rows
from tests.browser.person import Person

SETTINGS = {"title": "taskchat", "api": "", "auth": None, "development": True}


def test_conversations_are_listed_by_their_last_activity(alice: Person) -> None:
    """The newest first, the shown one marked, and a click opens one."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.button("New conversation").click()
    chat.say("Add salt", "Added salt")
    links = chat.conversations.get_by_role("link")
    expect(links).to_contain_text(["Add salt", "Add tea"])
    expect(links.first).to_have_attribute("aria-current", "page")
    links.nth(1).click()
    chat.expect("Added tea")
    chat.say("Finish tea", "Finished tea")
    expect(links).to_contain_text(["Add tea", "Add salt"])


def test_a_conversation_is_renamed(alice: Person) -> None:
    """The new title is the server's, and the place in the list stays."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.button("Rename Add tea").click()
    dialog = chat.page.get_by_role("dialog", name="Rename")
    dialog.get_by_role("textbox", name="Title").fill("Groceries")
    dialog.get_by_role("button", name="Rename", exact=True).click()
    expect(dialog).to_have_count(0)
    expect(chat.conversations.get_by_role("link", name="Groceries")).to_be_visible()
    expect(chat.button("Rename Groceries")).to_be_focused()
    assert alice.call("GET", "/conversations").json()["conversations"][0]["title"] == "Groceries"


def test_a_list_that_changes_behind_a_dialog_gives_the_focus_back(alice: Person) -> None:
    """The list is drawn anew while the dialog is open: the button that opened it is another element then."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.button("Rename Add tea").click()
    alice.call("PATCH", f"/conversations/{alice.conversations()[0]}", {"title": "Groceries"})
    chat.page.evaluate("() => dispatchEvent(new Event('focus'))")
    expect(chat.page.locator(".conversation")).to_contain_text("Groceries")
    chat.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(chat.button("Rename Groceries")).to_be_focused()


def test_a_conversation_is_deleted(alice: Person) -> None:
    """After a confirmation. A person who cancels keeps it. The task stays."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    dialog = chat.page.get_by_role("dialog", name="Delete")
    chat.button("Delete Add tea").click()
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    assert len(alice.conversations()) == 1
    chat.button("Delete Add tea").click()
    dialog.get_by_role("button", name="Delete", exact=True).click()
    expect(chat.conversations.get_by_role("link")).to_have_count(0)
    expect(chat.log).not_to_contain_text("Added tea")
    assert (alice.conversations(), alice.titles()) == ([], ["tea"])
    chat.say("Add salt", "Added salt")


def test_a_conversation_that_is_gone_is_said_so(alice: Person) -> None:
    """Another device deleted it. The message is kept to send it in a new one."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    assert alice.call("DELETE", f"/conversations/{alice.conversations()[0]}").status_code == 204
    chat.send("Add salt")
    chat.expect("gone")
    chat.log.get_by_role("button", name="Edit").last.click()
    expect(chat.message).to_have_value("Add salt")


def test_a_conversation_that_another_tab_deletes_is_gone(alice: Person) -> None:
    """Its messages leave the page, and the text that was not sent stays."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    other = alice.open(alice.conversations()[0])
    other.expect("Added tea")
    other.message.fill("Add salt")
    chat.button("Delete Add tea").click()
    chat.page.get_by_role("dialog", name="Delete").get_by_role("button", name="Delete", exact=True).click()
    other.expect("This conversation is gone.")
    expect(other.log).not_to_contain_text("Added tea")
    expect(other.message).to_have_value("Add salt")
    other.log.get_by_role("button", name="New conversation").click()
    other.message.press("Enter")
    other.expect_end("Added salt")


def test_a_title_needs_a_letter(alice: Person) -> None:
    """The browser says so, as for a title that is empty."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.button("Rename Add tea").click()
    dialog = chat.page.get_by_role("dialog", name="Rename")
    dialog.get_by_role("textbox", name="Title").fill("   ")
    dialog.get_by_role("button", name="Rename", exact=True).click()
    expect(dialog.locator("input:invalid")).to_have_count(1)
    expect(dialog.get_by_role("alert")).to_have_count(0)


def test_the_tasks_have_their_dates(alice: Person) -> None:
    """They are grouped by the time they are due, and completed ones are behind a disclosure."""
    chat = alice.open()
    chat.say("Add dentist tomorrow at 9 and tea", "Added dentist")
    expect(chat.tasks.get_by_role("listitem").filter(has_text="dentist").locator("time")).to_contain_text("9:00")
    expect(chat.tasks.get_by_role("list", name="Without a date")).to_contain_text("tea")
    chat.say("Finish tea", "Finished tea")
    expect(chat.tasks.get_by_text("tea", exact=True)).to_be_hidden()
    chat.tasks.get_by_text("Completed").click()
    expect(chat.tasks.get_by_text("tea", exact=True)).to_be_visible()


def test_a_change_from_elsewhere_shows_in_the_panel(alice: Person) -> None:
    """The person comes back to the page."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    alice.call("POST", "/chat", {"message": "Add salt"})
    chat.page.evaluate("() => dispatchEvent(new Event('focus'))")
    expect(chat.tasks).to_contain_text("salt")
    expect(chat.conversations.get_by_role("link")).to_have_count(2)


def test_the_export_is_a_file(alice: Person, tmp_path: Path) -> None:
    """It holds the person's rows."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    with chat.page.expect_download() as download:
        chat.button("Export my data").click()
    download.value.save_as(tmp_path / "export.json")
    exported = json.loads((tmp_path / "export.json").read_text())
    assert [task["title"] for task in exported["tables"]["task"]] == ["tea"]


def test_an_export_that_fails_says_so(alice: Person) -> None:
    """For all to see, and no button moves: "Erase my data" would come under the pointer."""
    chat = alice.open()
    before = chat.button("Erase my data").bounding_box()
    alice.context.set_offline(True)
    chat.button("Export my data").click()
    expect(chat.conversations.get_by_text("The export failed. The server does not answer.")).to_be_visible()
    assert chat.button("Erase my data").bounding_box() == before


def test_the_erasure_leaves_nothing(alice: Person, rows: Rows) -> None:
    """It needs the word. Then no row and nothing in the browser is left, and the page starts anew."""
    chat = alice.open()
    chat.say("Add tea", "Added tea")
    chat.button("Erase my data").click()
    dialog = chat.page.get_by_role("dialog", name="Erase my data")
    erase = dialog.get_by_role("button", name="Erase everything")
    erase.click()
    assert alice.titles() == ["tea"]
    dialog.get_by_role("textbox").fill("erase")
    with chat.page.expect_navigation():
        erase.click()
    expect(chat.tasks).to_contain_text("Nothing to do")
    expect(chat.conversations.get_by_role("link")).to_have_count(0)
    assert personal_data.count(rows, alice.id).keys() <= {"allowance"}  # the new page has asked for lists
    assert chat.page.evaluate("() => localStorage.length") == 0


def test_the_page_does_well_without_a_panel(alice: Person) -> None:
    """The tool's name in words is the line of a call, and no region is left empty."""
    alice.context.route("**/config.json", lambda route: route.fulfill(json={**SETTINGS, "panel": None}))
    chat = alice.open()
    expect(chat.page.get_by_role("region")).to_have_count(0)
    chat.say("Add tea", "Added tea")
    expect(chat.log.get_by_role("group")).to_contain_text("add task", ignore_case=True)
    assert alice.titles() == ["tea"]


def test_the_guides_domain_shows_its_expenses(alice: Person) -> None:
    """The page takes the module of docs/your-own-tools.md as it is; the test answers for the route of the guide."""
    guide = (ROOT / "docs" / "your-own-tools.md").read_text()
    (module,) = re.findall(r"`shared/taskchat/expenses/panel\.js`:\n\n```js\n(.*?)```", guide, re.DOTALL)
    expense = {"id": 1, "note": "lunch", "cents": 1250, "spent_on": "2026-11-25"}
    answer = {"expenses": [expense], "next_cursor": None}
    alice.context.route(
        f"{alice.url}/panel.js", lambda route: route.fulfill(body=module, content_type="text/javascript")
    )
    alice.context.route("**/expenses?*", lambda route: route.fulfill(json=answer))
    chat = alice.open()
    expenses = chat.page.get_by_role("region", name="Expenses")
    expect(expenses).to_contain_text("This month: 12.50")
    expect(expenses.get_by_role("row")).to_contain_text("lunch")
    expect(chat.button("Add lunch 12.50")).to_be_visible()
