"""Check the example domain, from which the engine's tests take all that they know of a domain."""

import pytest

from dev.standin_model.client import StandIn
from dev.standin_model.domain import domain
from tests.conftest import Person, run
from tests.domain import example
from tests.example_domain import ABSENT, Rows, Sentence

SENTENCES = [
    example.add("milk"),
    example.add("milk", "call mum", "bread"),
    example.show(),
    example.fail(),
    example.add("milk").then(example.show()),
    example.add("milk").then(example.change("milk")),
    example.add("milk").then(example.rename("milk", "oat milk")),
    example.add("milk").then(example.delete("milk")),
    example.fail().then(example.add("milk")),
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_each_sentence_calls_its_tools(alice: Person, sentence: Sentence) -> None:
    """The stand-in model makes these calls, in this order."""
    assert [call["tool"] for call in alice.say(sentence).json["tool_calls"]] == sentence.tools


def test_a_thing_is_known_by_its_id_too(alice: Person, rows: Rows) -> None:
    """Then nothing is listed."""
    (thing,) = map(str, example.put(rows, alice.id, "milk"))
    for sentence in (example.change(thing), example.rename(thing, "oat milk"), example.delete(thing)):
        assert [call["tool"] for call in alice.say(sentence).json["tool_calls"]] == sentence.tools


def test_rows_are_read_and_written(alice: Person, rows: Rows) -> None:
    """New things, a changed one, a renamed one, and one that was written without a turn."""
    alice.say(example.add("milk", "call mum"))
    alice.say(example.change("milk"))
    alice.say(example.rename("call mum", "write dad"))
    assert example.rows_of(rows, alice.id) == [example.row("milk", changed=True), example.row("write dad")]
    (written,) = example.put(rows, alice.id, "bread")
    assert example.rows_of(rows, alice.id)[-1] == example.row("bread")
    assert example.ids_of(rows, alice.id)[-1] == written
    assert "bread" in example.listed(alice.say(example.show()).json["tool_calls"][0]["result"])


def test_each_call_is_one_that_its_tool_takes(alice: Person, standin: StandIn, rows: Rows) -> None:
    """The model makes them all in one answer. Only the call for a thing that is not there fails."""
    first, second = example.put(rows, alice.id, "milk", "bread")
    calls = [
        (example.add_tool, example.call_add("eggs")),
        (example.list_tool, example.call_list()),
        (example.change_tool, example.call_change(first)),
        (example.rename_tool, example.call_rename(first, "oats")),
        (example.delete_tool, example.call_delete(second)),
        (example.delete_tool, example.call_delete(ABSENT)),
    ]
    standin.fault("call", calls=[call for _, call in calls], match="hello")
    made = alice.say("hello").json["tool_calls"]
    assert [call["tool"] for call in made] == [tool for tool, _ in calls]
    assert [call["outcome"] for call in made] == ["ok"] * 5 + ["error"]
    assert made[0]["result"][example.text] == "eggs"
    assert made[-1]["result"] == {"error": example.absent}


def test_its_tools_are_the_toolset_s() -> None:
    """Each name is a tool's, and the one that deletes is known to be destructive."""
    from chat.app import process

    named = {example.add_tool, example.list_tool, example.change_tool, example.rename_tool, example.delete_tool}
    assert named <= {tool.name for tool in run(process.tools.list_tools())}
    assert example.delete_tool in example.toolset.destructive


def test_the_development_commands_know_the_same_domain() -> None:
    """Their examples call each tool once, name all scopes and look into the right table."""
    from chat.app import process

    known = domain.examples
    tools = {tool.name: tool for tool in run(process.tools.list_tools())}
    assert sorted(known.tools) == sorted(tools)
    assert (known.scopes, known.table, known.text) == (example.toolset.scopes, example.table, example.text)
    assert known.tools[:2] == (example.add_tool, example.list_tool)
    assert domain.reads <= {
        name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint
    }
