"""Choose the next answer from the request alone.

At every request the scripts of all wishes run again from the start, on the results in the request. The first calls
without a result are the answer. So a turn that a client retries after an interruption makes only the missing calls.
"""

import itertools
import json
import re
from collections import defaultdict, deque

from .conversation import Answer, Call, Conversation, Json
from .domain import domain
from .script import NOT_UNDERSTOOD, Ask, Outcome, Result, Trouble, Wish, enumerate_names

RETRY = re.compile(r"\bmake the call once more\b", re.IGNORECASE)  # a failed call that asks for this counts as not made
ECHOES = 2  # parts of a message that an answer repeats because they were not understood
Key = tuple[str, str]


def next_answer(conversation: Conversation) -> Answer:
    """Return the calls that are still missing, or the final text."""
    wishes = domain.understand(conversation.turn.message)
    runs = [ScriptRun(wish, conversation) for wish in [w for w in wishes if not w.is_talk] or wishes[:1]]
    results = Results(conversation)
    while waiting := [run for run in runs if run.asks]:
        together = _first_in_parallel(waiting)
        if missing := results.missing(together):
            return Answer(calls=tuple(missing[:1] if conversation.one_call_at_a_time else missing))
        results.deliver(together)
    return Answer(_compose([outcome for run in runs for outcome in run.outcomes]))


class ScriptRun:
    """A script that runs: the calls it asks for now, and in the end its outcomes."""

    def __init__(self, wish: Wish, conversation: Conversation) -> None:
        self._script = wish.start(conversation)
        self.tells = wish.tells
        self.outcomes: list[Outcome] = []
        self.resume(None)

    def resume(self, results: list[Result] | None) -> None:
        """Send the script the results of its calls, and take its next calls or its outcomes."""
        self.asks: list[Ask] = []
        try:
            self.asks = self._script.send(results)
        except StopIteration as end:
            self.outcomes = end.value
        except Trouble as trouble:
            self.outcomes = [Outcome(str(trouble))]

    @property
    def reads(self) -> bool:
        """Return whether the calls change nothing."""
        return self.asks[0].tool in domain.reads

    @property
    def changes(self) -> set[object]:
        """Return the keys of the rows that the calls change."""
        return {ask.arguments[domain.key] for ask in self.asks if domain.key in ask.arguments}


def _first_in_parallel(waiting: list[ScriptRun]) -> list[ScriptRun]:
    """Return the first runs whose calls may be made in any order.

    All of them read or all write, no two write the same row, and a run that shows something waits for those before it.
    """
    changed: set[object] = set()
    together: list[ScriptRun] = []
    for run in waiting:
        shows_too_early = run.tells and together
        if shows_too_early or run.reads != waiting[0].reads or run.changes & changed:
            break
        changed |= run.changes
        together.append(run)
    return together


class Results:
    """The results in the request, each used once and in order. A call that several scripts read with is made once."""

    def __init__(self, conversation: Conversation) -> None:
        self._tools = conversation.tools
        self._unused: defaultdict[Key, deque[Result]] = defaultdict(deque)
        for made in conversation.turn.calls:
            result = Result.read(made.output or "")
            if result.value is not None or not RETRY.search(result.text):
                self._unused[_made_key(made.call)].append(result)

    def missing(self, runs: list[ScriptRun]) -> list[Call]:
        """Return the calls to tools on offer that have no result yet."""
        wanted: defaultdict[Key, list[Call]] = defaultdict(list)
        for ask in self._needed(runs):
            wanted[self._key(ask)].append(Call.new(ask.tool, self._tools[ask.tool].fit(ask.arguments)))
        return [call for key, calls in wanted.items() for call in calls[len(self._unused[key]) :]]

    def deliver(self, runs: list[ScriptRun]) -> None:
        """Resume each run with the results of its calls."""
        shared = {self._key(ask): self._take(ask) for ask in self._needed(runs) if ask.tool in domain.reads}
        for run in runs:
            run.resume([shared.get(self._key(ask)) or self._take(ask) for ask in run.asks])

    def _needed(self, runs: list[ScriptRun]) -> list[Ask]:
        asks = [ask for run in runs for ask in run.asks if ask.tool in self._tools]
        if runs[0].reads:
            return list({self._key(ask): ask for ask in asks}.values())
        return asks

    def _take(self, ask: Ask) -> Result:
        if ask.tool not in self._tools:
            return Result(f"I was given no tool {ask.tool}")
        return self._unused[self._key(ask)].popleft()

    def _key(self, ask: Ask) -> Key:
        """Return the key of the call as it would be sent: so it comes back in the request."""
        tool = self._tools.get(ask.tool)
        return _key(ask.tool, tool.fit(ask.arguments) if tool else ask.arguments)


def _made_key(call: Call) -> Key:
    arguments = call.parsed()
    return (call.name, call.arguments) if arguments is None else _key(call.name, arguments)


def _key(tool: str, arguments: Json) -> Key:
    given = {name: value for name, value in arguments.items() if value is not None}
    return tool, json.dumps(given, sort_keys=True)


def _compose(outcomes: list[Outcome]) -> str:
    sentences: list[str] = []
    for verb, same in itertools.groupby(outcomes, key=lambda outcome: outcome.verb):
        details = [outcome.detail for outcome in same if outcome.detail]
        if verb == NOT_UNDERSTOOD and len(details) > ECHOES:
            details = [*details[:ECHOES], f"{len(details) - ECHOES} more"]
        sentences += [f"{verb} {enumerate_names(details)}."] if verb else details
    needs_help = not outcomes or any(outcome.needs_help for outcome in outcomes)
    return " ".join(sentences + [domain.help] * needs_help)
