"""The stand-in model understands the sentences about tasks in docs/stand-in-model.md."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from dev.standin_model import running
from tests.test_standin_model import WAYS, Items, Json, Tools, Way, function, made, run_turn, table

PARAMETERS = {
    "add_task": ["title", "description"],
    "list_tasks": ["status", "cursor"],
    "complete_task": ["task_id"],
    "delete_task": ["task_id"],
    "update_task": ["task_id", "title", "description"],
}
FUNCTIONS = [function(name, *names) for name, names in PARAMETERS.items()]


class Toolbox(Tools):
    """Keep tasks in memory, and return what the program's tools return."""

    def __init__(self, *titles: str) -> None:
        self.tasks: list[Json] = []
        self.page_size = 100
        for title in titles:
            self.add_task(title.removesuffix(" (done)"))["completed"] = title.endswith(" (done)")

    def run(self, name: str, arguments: str) -> str:
        try:
            return json.dumps(getattr(self, name)(**json.loads(arguments)))
        except (AttributeError, LookupError, ValueError) as error:
            return str(error.args[0])

    def add_task(self, title: str, description: str | None = None) -> Json:
        self.tasks.append({"id": len(self.tasks) + 1, "title": title, "description": description, "completed": False})
        return self.tasks[-1]

    def list_tasks(self, status: str | None = None, cursor: str | None = None) -> Json:
        found = [task for task in self.tasks if status in (None, "all", _status(task))]
        start, end = int(cursor or 0), int(cursor or 0) + self.page_size
        return {"tasks": found[start:end], "next_cursor": str(end) if end < len(found) else None}

    def complete_task(self, task_id: int) -> Json:
        return self.update_task(task_id, completed=True)

    def delete_task(self, task_id: int) -> Json:
        task = self.update_task(task_id)
        self.tasks.remove(task)
        return task

    def update_task(self, task_id: int, **changes: Any) -> Json:
        for task in self.tasks:
            if task["id"] == task_id:
                task.update(changes)
                return task
        raise LookupError(f"There is no task {task_id}.")


def _status(task: Json) -> str:
    return "completed" if task["completed"] else "pending"


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    """Give the OpenAI client of a stand-in, without retries."""
    with running() as model, OpenAI(base_url=model.base_url, api_key="any", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}{'-streamed' * way[1]}")
def way(request: pytest.FixtureRequest, client: OpenAI) -> Way:
    """Give each of the four ways to ask."""
    return Way(*request.param, client, FUNCTIONS)


@pytest.fixture(scope="module")
def plain(client: OpenAI) -> Way:
    """Give one way to ask, for tests that do not depend on the way."""
    return Way("responses", False, client, FUNCTIONS)


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


def test_independent_calls_come_in_one_response(way: Way) -> None:
    """A dependent call comes later. Here a task is looked up after it was added, and then completed."""
    rounds, text = run_turn(way, [], "Add buy milk and call mum, then finish the milk", Toolbox())
    assert rounds == [["add_task", "add_task"], ["list_tasks"], ["complete_task"]]
    assert text == "Added buy milk (1) and call mum (2). Finished buy milk (1)."


def test_parallel_calls_can_be_forbidden(way: Way) -> None:
    """`parallel_tool_calls: false` gives one call in each response."""
    rounds, _ = run_turn(way, [], "add milk and bread", Toolbox(), parallel_tool_calls=False)
    assert rounds == [["add_task"], ["add_task"]]


def test_an_interrupted_turn_makes_the_missing_calls(way: Way) -> None:
    """Calls in the input count as made. The answer reports all of them."""
    toolbox = Toolbox()
    history: Items = [{"role": "user", "content": "add milk and bread"}]
    history += made([{"call_id": "call_old", "name": "add_task", "arguments": '{"title": "milk"}'}], toolbox)
    reply = way.ask(history)
    assert [json.loads(call["arguments"]) for call in reply.calls] == [{"title": "bread"}]
    assert way.ask(history + made(reply.calls, toolbox)).text == "Added milk (1) and bread (2)."


def test_earlier_turns_are_not_repeated(way: Way) -> None:
    """Only the last message counts, with the calls after it."""
    toolbox, history = Toolbox(), []
    run_turn(way, history, "add milk", toolbox)
    assert run_turn(way, history, "add milk", toolbox) == ([["add_task"]], "Added milk (2).")


def test_the_model_reports_its_history(way: Way) -> None:
    """A test can check that the history arrives."""
    toolbox, history = Toolbox(), []
    run_turn(way, history, "add milk", toolbox)
    assert run_turn(way, history, "Which tools did you use?", toolbox)[1] == "Earlier I used add_task."
    assert run_turn(way, history, "What did I just say?", toolbox)[1] == "You said: Which tools did you use?"


def test_an_unknown_sentence_gets_a_hint(way: Way) -> None:
    """The answer repeats the sentence, and gives examples of known ones."""
    reply = way.ask("Remember that I like tea.")
    assert reply.text is not None
    assert reply.text.startswith("I did not understand “Remember that I like tea”. I am the stand-in")


def test_context_lines_are_not_part_of_the_message(way: Way) -> None:
    """The program may add a context line before or after the message, in the same part or in another one."""
    kind = "input_text" if way.api == "responses" else "text"
    parts = [{"type": kind, "text": "[context: Friday]"}, {"type": kind, "text": "add milk\n[context: end]"}]
    developer = {"role": "developer", "content": "It is Friday."}
    reply = way.ask([{"role": "user", "content": parts}, developer])
    assert [call["arguments"] for call in reply.calls] == ['{"title":"milk"}']


def test_an_output_may_be_a_list_of_parts(plain: Way) -> None:
    """Tools with structured content return such lists."""
    call = {"type": "function_call", "call_id": "c", "name": "add_task", "arguments": '{"title":"milk"}'}
    parts = [{"type": "input_text", "text": '{"id": 7, "title": "milk", "completed": false}'}]
    output = {"type": "function_call_output", "call_id": "c", "output": parts}
    assert plain.ask([{"role": "user", "content": "add milk"}, call, output]).text == "Added milk (7)."


def test_a_missing_tool_is_not_called(way: Way) -> None:
    """The answer says that the request has no such tool."""
    assert way.ask("add milk", tools=FUNCTIONS[1:]).text == "I could not add milk: I was given no tool add_task."


def test_arguments_fit_the_sent_schema(plain: Way) -> None:
    """A strict schema requires each parameter. A parameter that the schema lacks is not sent."""
    strict = function("list_tasks", "status", "cursor", required=("status", "cursor"))
    bare = function("list_tasks")
    rounds, _ = run_turn(plain, [], "what is left?", Toolbox(), tools=[bare])
    assert rounds == [["list_tasks"]]
    assert plain.ask("what is left?", tools=[strict]).calls[0]["arguments"] == '{"status":"pending","cursor":null}'
    assert plain.ask("what is left?", tools=[bare]).calls[0]["arguments"] == "{}"


@pytest.mark.parametrize("unit", ["and ", "please ", "add ", ". ", ".", ",", "\n", '"', "a, ", "what "])
def test_every_message_is_answered_at_once(unit: str, plain: Way) -> None:
    """The patterns take linear time, for 32 KB of any text."""
    hasty = Way("responses", False, plain.client.with_options(timeout=2))
    assert hasty.ask(unit * (32_768 // len(unit)))
