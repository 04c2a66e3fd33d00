"""Test the sentences about tasks, which docs/stand-in-model.md lists for the stand-in model."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from dev.standin_model import running
from tests.test_standin_model import Toolbox, Way, run_turn, table


@pytest.fixture(scope="module")
def plain() -> Iterator[Way]:
    """One way to ask: what is understood does not depend on the way."""
    with running() as model, OpenAI(base_url=model.base_url, api_key="any", max_retries=0, timeout=20) as client:
        yield Way("responses", False, client)


@pytest.mark.parametrize(("said", "calls", "answer"), table("Sentences"))
def test_documented_sentences_are_understood(said: str, calls: str, answer: str, plain: Way) -> None:
    """Each row of the table: what is called, in this order, and what is answered."""
    toolbox = Toolbox("buy milk", "call mum", "write report (done)")
    rounds, text = run_turn(plain, [], said, toolbox)
    assert [name for names in rounds for name in names] == [name.strip() for name in calls.split(",") if name]
    assert text == answer


def test_what_is_shown_is_the_state_after_all_that_was_asked_before(plain: Way) -> None:
    """A list after a change is not the list that was read to make the change."""
    rounds, text = run_turn(plain, [], "Finish the milk and tell me what is left", Toolbox("milk", "bread"))
    assert rounds == [["list_tasks"], ["complete_task"], ["list_tasks"]]
    assert text == "Finished milk (1). Left to do: bread (2)."


def test_one_task_is_never_changed_twice_at_once(plain: Way) -> None:
    """Two changes of one task are made one after the other."""
    rounds, _ = run_turn(plain, [], "rename 1 to bread and finish 1", Toolbox("milk"))
    assert rounds == [["update_task"], ["complete_task"]]


def test_long_lists_are_read_to_their_end(plain: Way) -> None:
    """A cursor is followed, also to find a task."""
    toolbox = Toolbox("milk", "bread", "eggs")
    toolbox.page_size = 2
    rounds, text = run_turn(plain, [], "finish the eggs", toolbox)
    assert rounds == [["list_tasks"], ["list_tasks"], ["complete_task"]]
    assert text == "Finished eggs (3)."


def test_what_it_cannot_do_is_said(plain: Way) -> None:
    """In the sentence about that wish; the others are fulfilled."""
    toolbox = Toolbox("milk", "bread")
    _, text = run_turn(plain, [], "rename everything to eggs and finish 2", toolbox)
    assert text == "I change one task at a time. Finished bread (2)."
