"""The reference pages are those that `make reference` writes, and a real stream and real metrics are as they say."""

import re
from pathlib import Path

import pytest

from dev.reference import __main__ as reference
from dev.reference import metrics, problems
from taskchat import errors
from tests.conftest import ROOT, Person, serving
from tests.domain import example
from tests.streams import Client


@pytest.mark.parametrize("path", reference.PAGES, ids=lambda path: path.name)
def test_a_page_is_up_to_date(path: Path) -> None:
    """After a change of the code, `make reference` writes it anew."""
    assert path.read_text() == reference.PAGES[path]()


def test_a_problem_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new class of errors needs a sentence for the page."""
    monkeypatch.setattr(errors.NotJson, "__doc__", "Something.")
    with pytest.raises(problems.UndescribedError, match="NotJson"):
        problems.page()


def test_each_metric_has_a_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric without its docstring fails the page."""
    monkeypatch.setattr(metrics, "attribute_docstrings", lambda _owner: {})
    with pytest.raises(KeyError, match="TURNS"):
        metrics.page()


def test_the_events_of_a_stream_have_the_fields_of_the_page(alice: Person) -> None:
    """A stream has each event but `failed`, with all of its fields and no other."""
    from chat.app import app

    sections = re.split(r"^## ", (ROOT / "docs/events.md").read_text(), flags=re.MULTILINE)[1:]
    named = {each.partition("\n")[0]: set(re.findall(r"^\| `(\w+)`", each, re.MULTILINE)) for each in sections}
    with serving(app) as url, Client(url, alice).say(example.add("milk"), "key") as stream:
        found = {name: set(data) for name, data in stream.all()}
    assert found == {name: fields for name, fields in named.items() if name != "failed"}
