"""The stand-in model understands the sentences about tasks in docs/stand-in-model.md."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from dev.standin_model import running
from tests.test_standin_model import Toolbox, Way, run_turn, table


@pytest.fixture(scope="module")
def plain() -> Iterator[Way]:
    """Ask in one way: the sentences do not depend on the way."""
    with running() as model, OpenAI(base_url=model.base_url, api_key="any", max_retries=0, timeout=20) as client:
        yield Way("responses", False, client)


@pytest.mark.parametrize(("message", "calls", "answer"), table("Sentences"))
def test_documented_sentences_are_understood(message: str, calls: str, answer: str, plain: Way) -> None:
    """Each row of the table has the message, the calls in their order, and the answer."""
    toolbox = Toolbox("buy milk", "call mum", "write report (done)")
    rounds, text = run_turn(plain, [], message, toolbox)
    assert [name for names in rounds for name in names] == [name.strip() for name in calls.split(",") if name]
    assert text == answer


def test_a_list_after_a_change_has_the_change(plain: Way) -> None:
    """The stand-in lists again, and does not use the list that it read to make the change."""
    rounds, text = run_turn(plain, [], "Finish the milk and tell me what is left", Toolbox("milk", "bread"))
    assert rounds == [["list_tasks"], ["complete_task"], ["list_tasks"]]
    assert text == "Finished milk (1). Left to do: bread (2)."


def test_two_changes_of_one_task_follow_each_other(plain: Way) -> None:
    """The second change waits for the first."""
    rounds, _ = run_turn(plain, [], "rename 1 to bread and finish 1", Toolbox("milk"))
    assert rounds == [["update_task"], ["complete_task"]]


def test_all_pages_of_a_list_are_read(plain: Way) -> None:
    """The stand-in follows the cursor, also to find a task."""
    toolbox = Toolbox("milk", "bread", "eggs")
    toolbox.page_size = 2
    rounds, text = run_turn(plain, [], "finish the eggs", toolbox)
    assert rounds == [["list_tasks"], ["list_tasks"], ["complete_task"]]
    assert text == "Finished eggs (3)."


def test_an_impossible_wish_is_reported(plain: Way) -> None:
    """Its sentence says so, and the other wishes are fulfilled."""
    toolbox = Toolbox("milk", "bread")
    _, text = run_turn(plain, [], "rename everything to eggs and finish 2", toolbox)
    assert text == "I change one task at a time. Finished bread (2)."
