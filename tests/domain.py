"""Name the domain that the engine's tests use. This is the only line to change for another one.

A test takes sentences, tool calls, rows and tool names from `example` and knows nothing else of a domain:

    answer = alice.say(example.add("milk"))
    assert answer.json["tool_calls"][0]["tool"] == example.add_tool
    assert example.rows_of(rows, alice.id) == [example.row("milk")]
"""

from tests.tasks.example import example as example
