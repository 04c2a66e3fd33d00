"""What to do next, from the wire input alone.

Each wish is a script: a generator that yields the tool calls it needs and is sent their results. At every request all
scripts run again from the start, on the results that stand in the input; the first calls without a result are the
answer. So a turn that is taken up again after an interruption makes only the calls that are missing.
"""

import itertools
import json
import textwrap
from collections import defaultdict, deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from .conversation import Answer, Call, Conversation, Json, Turn
from .faults import simulated
from .sentences import (
    Add,
    Change,
    Delete,
    Finish,
    RecallMessage,
    RecallTools,
    Show,
    Simulate,
    Status,
    Target,
    Unclear,
    Wish,
    understand,
)

READS = frozenset({"list_tasks"})
MAX_PAGES = 50  # a list that never ends would otherwise never end here either
EMPTY = {
    "pending": "Nothing is left to do.",
    "completed": "Nothing is completed yet.",
    "all": "You have no tasks.",
}
HEADINGS = {"pending": "Left to do", "completed": "Completed", "all": "Your tasks"}
HELP = (
    "I am the stand-in for a real model and understand plain sentences only, such as: add buy milk and call mum; "
    "what is left?; finish the milk; rename 2 to call dad; describe 2 as after lunch; delete 3."
)

NOT_UNDERSTOOD = "I did not understand"
ECHO_LENGTH = 60  # characters of what the person wrote that a sentence repeats
Key = tuple[str, str]


class Trouble(Exception):
    """Raised in a script when its wish cannot be fulfilled; its text is the sentence to say."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A tool call that a script needs."""

    tool: str
    arguments: Json

    @property
    def key(self) -> Key:
        return _key(self.tool, self.arguments)


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool returned: an object, or a sentence about what went wrong."""

    value: Json | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Something to say. Neighbours with the same verb become one sentence; without a verb it is a sentence already."""

    detail: str
    verb: str = ""


Script = Generator[list[Ask], Any, list[Outcome]]
Steps = Generator[list[Ask], Any, list[Json]]


def next_answer(conversation: Conversation) -> Answer:
    """The calls that are still missing, or the final sentence."""
    pursuits = [Pursuit(wish, conversation) for wish in understand(conversation.turn.said)]
    results = Results(conversation)
    while waiting := [pursuit for pursuit in pursuits if pursuit.asks]:
        together = _side_by_side(waiting)
        if missing := results.missing(together):
            return Answer(calls=_calls(missing, conversation))
        results.deliver(together)
    return Answer(_compose([outcome for pursuit in pursuits for outcome in pursuit.outcomes]))


class Pursuit:
    """A script on its way: what it asks for now, and in the end its outcomes."""

    def __init__(self, wish: Wish, conversation: Conversation) -> None:
        self._script = _script(wish, conversation)
        self.tells = isinstance(wish, Show)
        self.outcomes: list[Outcome] = []
        self.go_on(None)

    def go_on(self, results: list[Result] | None) -> None:
        self.asks: list[Ask] = []
        try:
            self.asks = self._script.send(results)
        except StopIteration as end:
            self.outcomes = end.value
        except Trouble as trouble:
            self.outcomes = [Outcome(str(trouble))]

    @property
    def reads(self) -> bool:
        return self.asks[0].tool in READS

    @property
    def touches(self) -> set[int]:
        return {ask.arguments["task_id"] for ask in self.asks if "task_id" in ask.arguments}


def _side_by_side(waiting: list[Pursuit]) -> list[Pursuit]:
    """The first ones that may run in any order.

    All read or all write, no task is written twice, and what is to be shown waits for all that was asked before it.
    """
    touched: set[int] = set()
    together: list[Pursuit] = []
    for pursuit in waiting:
        shows_too_early = pursuit.tells and together
        if shows_too_early or pursuit.reads != waiting[0].reads or pursuit.touches & touched:
            break
        touched |= pursuit.touches
        together.append(pursuit)
    return together


class Results:
    """The results in the input, each used once and in order. What several scripts want to read at once is read once."""

    def __init__(self, conversation: Conversation) -> None:
        self._tools = conversation.tools
        self._unused: defaultdict[Key, deque[Result]] = defaultdict(deque)
        for made in conversation.turn.calls:
            self._unused[_made_key(made.call)].append(_result(made.output or ""))

    def missing(self, pursuits: list[Pursuit]) -> list[Ask]:
        """Calls on offer that have no result yet."""
        wanted: defaultdict[Key, list[Ask]] = defaultdict(list)
        for ask in self._needed(pursuits):
            wanted[ask.key].append(ask)
        return [ask for key, asks in wanted.items() for ask in asks[len(self._unused[key]) :]]

    def deliver(self, pursuits: list[Pursuit]) -> None:
        shared = {ask.key: self._take(ask) for ask in self._needed(pursuits) if ask.tool in READS}
        for pursuit in pursuits:
            pursuit.go_on([shared.get(ask.key) or self._take(ask) for ask in pursuit.asks])

    def _needed(self, pursuits: list[Pursuit]) -> list[Ask]:
        asks = [ask for pursuit in pursuits for ask in pursuit.asks if ask.tool in self._tools]
        if pursuits[0].reads:
            return list({ask.key: ask for ask in asks}.values())
        return asks

    def _take(self, ask: Ask) -> Result:
        if ask.tool not in self._tools:
            return Result(error=f"I was given no tool {ask.tool}")
        return self._unused[ask.key].popleft()


def _calls(asks: list[Ask], conversation: Conversation) -> tuple[Call, ...]:
    at_once = asks[:1] if conversation.one_call_at_a_time else asks
    return tuple(Call.new(ask.tool, conversation.tools[ask.tool].fit(ask.arguments)) for ask in at_once)


def _made_key(call: Call) -> Key:
    arguments = call.parsed()
    return (call.name, call.arguments) if arguments is None else _key(call.name, arguments)


def _key(tool: str, arguments: Json) -> Key:
    given = {name: value for name, value in arguments.items() if value is not None}
    return tool, json.dumps(given, sort_keys=True)


def _result(output: str) -> Result:
    try:
        value = json.loads(output)
    except ValueError:
        return Result(error=output)
    return Result(value) if isinstance(value, dict) else Result(error=output)


def _script(wish: Wish, conversation: Conversation) -> Script:
    match wish:
        case Add():
            return _add(wish)
        case Show():
            return _show(wish.status)
        case Finish():
            return _each(wish.target, "complete_task", "Finished", "finish", "pending")
        case Delete():
            return _each(wish.target, "delete_task", "Deleted", "delete", "all")
        case Change():
            return _change(wish)
        case RecallMessage() | RecallTools():
            return _say(Outcome(_recall(wish, conversation.turns[:-1])))
        case Simulate():
            return _say(Outcome(_simulated(wish.said)))
        case Unclear():
            return _say(Outcome(f"\u201c{_short(wish.text)}\u201d", NOT_UNDERSTOOD))


def _say(outcome: Outcome) -> Script:
    """A script without any call; `yield from` nothing makes it a generator."""
    yield from ()
    return [outcome]


def _recall(wish: RecallMessage | RecallTools, earlier: list[Turn]) -> str:
    if isinstance(wish, RecallTools):
        return _tools_used(earlier)
    return f"You said: {earlier[-1].said}" if earlier else "You said nothing before this."


def _simulated(said: str) -> str:
    name = simulated(said)
    return f"Simulated {name}." if name else f"I know no such fault: {_short(said)}."


def _tools_used(turns: Iterable[Turn]) -> str:
    names = list(dict.fromkeys(made.call.name for turn in turns for made in turn.calls))
    return f"Earlier I used {_enumerate(names)}." if names else "I have used no tools before this."


def _add(wish: Add) -> Script:
    arguments = {"title": wish.title} | ({"description": wish.description} if wish.description else {})
    results = yield [Ask("add_task", arguments)]
    return [_report(results[0], "Added", f"add {_short(wish.title)}")]


def _show(status: Status) -> Script:
    tasks = yield from _list(status, "list your tasks")
    if not tasks:
        return [Outcome(EMPTY[status])]
    return [Outcome(f"{HEADINGS[status]}: {_enumerate(_named(task, tell_done=status == 'all') for task in tasks)}.")]


def _each(target: Target, tool: str, done: str, to_do: str, status: Status) -> Script:
    """Finish or delete every task that is meant."""
    task_ids = yield from _choose(target, to_do, status)
    results = yield [Ask(tool, {"task_id": task_id}) for task_id in task_ids]
    pairs = zip(task_ids, results, strict=True)
    return [_report(result, done, f"{to_do} {task_id}") for task_id, result in pairs]


def _change(wish: Change) -> Script:
    [task_id] = yield from _choose(wish.target, "change", "all")
    results = yield [Ask("update_task", {"task_id": task_id, wish.field: wish.text})]
    if wish.field == "title":
        return [_report(results[0], f"Renamed {task_id} to", f"rename {task_id}")]
    return [_report(results[0], "Described", f"describe {task_id}", f" as \u201c{wish.text}\u201d")]


def _choose(target: Target, to_do: str, status: Status) -> Generator[list[Ask], Any, list[int]]:
    """The ids of the tasks that are meant; words must point at one task."""
    if target.task_id is not None:
        return [target.task_id]
    if target.every is not None:
        return (yield from _choose_every(target, to_do, status))
    tasks = yield from _list(status, f"{to_do} \u201c{target.words}\u201d")
    return [_only_match(tasks, target.words)["id"]]


def _choose_every(target: Target, to_do: str, status: Status) -> Generator[list[Ask], Any, list[int]]:
    wanted: Any = status if target.every == "any" else target.every
    tasks = yield from _list(wanted, f"{to_do} them")
    if not tasks:
        raise Trouble(f"There is nothing to {to_do}.")
    return [task["id"] for task in tasks]


def _only_match(tasks: list[Json], words: str) -> Json:
    found = [task for task in tasks if all(word in task["title"].lower() for word in words.lower().split())]
    exact = [task for task in found if task["title"].lower() == words.lower()]
    match exact or found:
        case [task]:
            return task
        case []:
            raise Trouble(f"I found no such task: \u201c{words}\u201d. Which one do you mean?")
        case several:
            raise Trouble(f"Several tasks match \u201c{words}\u201d: {_enumerate(map(_named, several))}. Which one?")


def _list(status: Status, to_do: str) -> Steps:
    """All tasks of a status, page by page."""
    tasks: list[Json] = []
    cursor = None
    for _ in range(MAX_PAGES):
        [page] = yield [Ask("list_tasks", {"status": status, "cursor": cursor})]
        if page.value is None or "tasks" not in page.value:
            raise Trouble(f"I could not {to_do}: {_clause(page.error)}.")
        tasks += page.value["tasks"]
        if not (cursor := page.value.get("next_cursor")):
            break
    return tasks


def _report(result: Result, done: str, to_do: str, suffix: str = "") -> Outcome:
    if result.value is None or "id" not in result.value:
        return Outcome(f"I could not {to_do}: {_clause(result.error)}.")
    return Outcome(_named(result.value) + suffix, done)


def _clause(error: str) -> str:
    """A tool's error sentence, to stand inside another sentence."""
    return error.strip().rstrip(".") or "the tool did not say why"


def _named(task: Json, *, tell_done: bool = False) -> str:
    done = ", done" if tell_done and task.get("completed") else ""
    return f"{task.get('title', 'task')} ({task['id']}{done})"


def _compose(outcomes: list[Outcome]) -> str:
    sentences: list[str] = []
    for verb, same in itertools.groupby(outcomes, key=lambda outcome: outcome.verb):
        details = [outcome.detail for outcome in same]
        sentences += [f"{verb} {_enumerate(details)}."] if verb else details
    needs_help = not outcomes or any(outcome.verb == NOT_UNDERSTOOD for outcome in outcomes)
    return " ".join(sentences + [HELP] * needs_help)


def _short(text: str) -> str:
    return textwrap.shorten(text, ECHO_LENGTH, placeholder="\u2026")


def _enumerate(names: Iterable[str]) -> str:
    *first, last = list(names)
    return f"{', '.join(first)} and {last}" if first else last
