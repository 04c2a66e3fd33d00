"""The stand-in model understands the sentences about tasks in docs/stand-in-model.md."""

import json
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from openai import OpenAI

from dev.standin_model import running
from tests.test_standin_model import WAYS, Items, Json, Tools, Way, function, made, run_turn, table

PARAMETERS = {
    "add_task": ["title", "description", "due"],
    "list_tasks": ["status", "due", "cursor"],
    "complete_task": ["task_id"],
    "delete_task": ["task_id"],
    "update_task": ["task_id", "title", "description", "completed", "due"],
}
FUNCTIONS = [function(name, *names) for name, names in PARAMETERS.items()]
CONTEXT = "[context: Wednesday 2026-11-25 09:00, Europe/Paris]\n"
PERIODS = {"today": ("2026-11-25",) * 2, "overdue": ("", "2026-11-24"), "this_week": ("2026-11-23", "2026-11-29")}
"""The first and last day of each period, in the week of CONTEXT."""


class Toolbox(Tools):
    """Keep tasks in memory, and return what the program's tools return."""

    def __init__(self, *titles: str) -> None:
        self.tasks: list[Json] = []
        self.next_id = 1
        self.page_size = 100
        for text in titles:
            title, _, due = text.removesuffix(" (done)").partition(" @ ")
            self.add_task(title, due=due or None)
            self.tasks[-1]["completed"] = text.endswith(" (done)")

    def run(self, name: str, arguments: str) -> str:
        try:
            return json.dumps(getattr(self, name)(**json.loads(arguments)))
        except (AttributeError, LookupError, ValueError) as error:
            return str(error.args[0])

    def add_task(self, title: str, description: str = "", due: str | None = None) -> Json:
        task: Json = {"id": self.next_id, "title": title, "description": description, "completed": False}
        self.tasks.append(task | _dated(due))
        self.next_id += 1
        return dict(self.tasks[-1])

    def list_tasks(self, status: str | None = None, due: str | None = None, cursor: str | None = None) -> Json:
        found = [task for task in self.tasks if status in (None, "all", _status(task)) and _is_due(task, due)]
        found.sort(key=lambda task: (task["due"] or "9", task["id"]))
        start, end = int(cursor or 0), int(cursor or 0) + self.page_size
        return {"tasks": found[start:end], "next_cursor": str(end) if end < len(found) else None}

    def complete_task(self, task_id: int) -> Json:
        return self.update_task(task_id, completed=True)

    def delete_task(self, task_id: int) -> Json:
        task = self.update_task(task_id)
        self.tasks = [each for each in self.tasks if each["id"] != task_id]
        return task

    def update_task(self, task_id: int, **changes: Any) -> Json:
        for task in self.tasks:
            if task["id"] == task_id:
                before = dict(task)
                task.update(changes | (_dated(changes["due"]) if "due" in changes else {}))
                return task | {"before": before}
        raise LookupError(f"There is no task {task_id}.")


def _dated(due: str | None) -> Json:
    if due in (None, "none"):
        return {"due": None, "weekday": None}
    shown = due if len(due) == len("2026-11-27") or "[" in due else f"{due}+01:00[Europe/Paris]"
    return {"due": shown, "weekday": f"{date.fromisoformat(due[:10]):%A}"}


def _status(task: Json) -> str:
    return "completed" if task["completed"] else "pending"


def _is_due(task: Json, due: str | None) -> bool:
    first, _, last = (due or "").partition("/")
    first, last = PERIODS.get(first, (first, last or first))
    return due is None or (first <= (task["due"] or "")[:10] <= last and task["due"] is not None)


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


@pytest.mark.parametrize(("message", "calls", "answer"), table("Dates"))
def test_documented_dates_are_understood(message: str, calls: str, answer: str, plain: Way) -> None:
    """The context line says which day today is."""
    toolbox = Toolbox("dentist @ 2026-11-26T09:00", "call mum @ 2026-11-27", "pay rent @ 2026-11-24", "buy milk")
    rounds, text = run_turn(plain, [], CONTEXT + message, toolbox)
    assert [name for names in rounds for name in names] == [name.strip() for name in calls.split(",") if name]
    assert text == answer


@pytest.mark.parametrize(("message", "calls", "answer"), table("Undo"))
def test_documented_changes_are_undone(message: str, calls: str, answer: str, plain: Way) -> None:
    """A turn that is undone leaves the tasks as they were, and an undo that is undone leaves the turn's changes."""
    toolbox, history = Toolbox("buy milk", "call mum @ 2026-11-27", "write report (done)"), []
    before = _contents(toolbox)
    run_turn(plain, history, CONTEXT + message, toolbox)
    after = _contents(toolbox)
    rounds, text = run_turn(plain, history, CONTEXT + "oops, undo that", toolbox)
    assert [name for names in rounds for name in names] == [name.strip() for name in calls.split(",") if name]
    assert text == answer
    assert _contents(toolbox) == before
    if calls:
        run_turn(plain, history, CONTEXT + "undo that", toolbox)
        assert _contents(toolbox) == after


@pytest.mark.parametrize(("first", "message", "calls", "answer"), table("References"))
def test_documented_references_are_understood(first: str, message: str, calls: str, answer: str, plain: Way) -> None:
    """The results of the first turn are in the history."""
    toolbox, history = Toolbox("buy milk", "call mum @ 2026-11-27", "write report (done)"), []
    run_turn(plain, history, CONTEXT + first, toolbox)
    rounds, text = run_turn(plain, history, CONTEXT + message, toolbox)
    assert [name for names in rounds for name in names] == [name.strip() for name in calls.split(",") if name]
    assert text == answer


def _contents(toolbox: Toolbox) -> list[Json]:
    """Return the tasks without their ids, in an order of their own."""
    return sorted(({**task, "id": None} for task in toolbox.tasks), key=str)


def test_an_undo_passes_over_turns_that_change_nothing(plain: Way) -> None:
    """It reverses the newest change, though the user has asked for a list since."""
    toolbox, history = Toolbox("milk"), []
    for message in ("delete 1", "what is left?", "hello"):
        run_turn(plain, history, CONTEXT + message, toolbox)
    assert run_turn(plain, history, "undo that", toolbox) == ([["add_task"]], "Restored milk (2).")


def test_an_undo_reports_a_call_that_fails(plain: Way) -> None:
    """Another conversation may have deleted the task meanwhile."""
    toolbox, history = Toolbox("milk", "bread"), []
    run_turn(plain, history, "finish 1 and finish 2", toolbox)
    toolbox.delete_task(1)
    text = run_turn(plain, history, "undo that", toolbox)[1]
    assert text == "Restored bread (2). I could not restore 1: There is no task 1."


def test_an_undo_goes_on_after_an_interruption(plain: Way) -> None:
    """The calls that the turn has made are not made again."""
    toolbox, history = Toolbox("milk", "bread"), []
    run_turn(plain, history, "delete 1 and delete 2", toolbox)
    history += [{"role": "user", "content": "undo that"}]
    history += made([{"call_id": "c", "name": "add_task", "arguments": '{"title": "bread"}'}], toolbox)
    reply = plain.ask(history)
    assert [json.loads(call["arguments"]) for call in reply.calls] == [{"title": "milk"}]


@pytest.mark.parametrize(
    ("context", "words", "due"),
    [
        ("Thursday 2026-11-26 23:59, Europe/Paris", "tomorrow", "2026-11-27"),
        ("Friday 2026-11-27 00:00, Europe/Paris", "tomorrow", "2026-11-28"),
        ("Thursday 2026-11-26 23:59, Europe/Paris", "Friday", "2026-11-27"),
        ("Friday 2026-11-27 00:00, Europe/Paris", "Friday", "2026-12-04"),
        ("Friday 2026-11-27 00:00, Europe/Paris", "next Friday", "2026-12-04"),
        ("Sunday 2026-11-29 23:59, Pacific/Apia", "next Monday", "2026-11-30"),
        ("Monday 2026-11-30 00:00, Pacific/Apia", "next Monday", "2026-12-07"),
        ("Thursday 2026-12-31 23:59, UTC", "tomorrow at 12am", "2027-01-01T00:00"),
        ("Monday 2028-02-28 12:00, UTC", "the day after tomorrow at 12pm", "2028-03-01T12:00"),
        ("Monday 2028-02-28 12:00, UTC", "2028-02-30", "2028-02-30"),  # the tool refuses it
        ("Monday 2028-02-28 12:00, UTC", "2028-03-01T09:30", "2028-03-01T09:30"),
    ],
)
def test_days_are_counted_from_the_context_line(context: str, words: str, due: str, plain: Way) -> None:
    """Midnight in the user's zone begins the next day."""
    message = f"[context: {context}]\n[context: Monday 2001-01-01 00:00, UTC]\nadd the dentist {words}"
    assert [json.loads(call["arguments"]) for call in plain.ask(message).calls] == [{"title": "dentist", "due": due}]


def test_without_a_context_line_no_day_is_assumed(plain: Way) -> None:
    """The answer says so. A sentence without a day needs none."""
    answer = "I do not know which day it is: the request has no context line."
    assert plain.ask("add the dentist tomorrow").text == answer
    assert plain.ask("what is due tomorrow?").text == answer
    assert plain.ask("add the dentist").calls


@pytest.mark.parametrize("title", ["Friday", 'read "Gone tomorrow"', "tomorrow never dies", "platform 9"])
def test_a_title_may_look_like_a_day(title: str, plain: Way) -> None:
    """Words are a date only behind a title, and outside quotes."""
    [call] = plain.ask(f"{CONTEXT}add {title}").calls
    assert json.loads(call["arguments"])["title"] == title.strip('"')


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


UNITS = ["and ", "please ", "add ", ". ", ".", ",", "\n", '"', "a, ", "what ", "today ", "at 9 ", "move a to "]


@pytest.mark.parametrize("unit", UNITS)
def test_every_message_is_answered_at_once(unit: str, plain: Way) -> None:
    """The patterns take linear time, for 32 KB of any text."""
    hasty = Way("responses", False, plain.client.with_options(timeout=2))
    assert hasty.ask(unit * (32_768 // len(unit)))
