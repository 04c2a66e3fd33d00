"""What to do next, from the wire input alone.

At every request the scripts of all wishes run again from the start, on the results that stand in the input; the first
calls without a result are the answer. So a turn that is taken up again after an interruption makes only the calls that
are missing.
"""

import itertools
import json
import re
from collections import defaultdict, deque

from .conversation import Answer, Call, Conversation, Json
from .domain import domain
from .script import NOT_UNDERSTOOD, Ask, Outcome, Result, Trouble, Wish, enumerate_names

AGAIN = re.compile(r"\bmake the call once more\b", re.IGNORECASE)  # a failed call that asks for this counts as not made
Key = tuple[str, str]


def next_answer(conversation: Conversation) -> Answer:
    """The calls that are still missing, or the final sentence."""
    pursuits = [Pursuit(wish, conversation) for wish in domain.understand(conversation.turn.said)]
    results = Results(conversation)
    while waiting := [pursuit for pursuit in pursuits if pursuit.asks]:
        together = _side_by_side(waiting)
        if missing := results.missing(together):
            return Answer(calls=tuple(missing[:1] if conversation.one_call_at_a_time else missing))
        results.deliver(together)
    return Answer(_compose([outcome for pursuit in pursuits for outcome in pursuit.outcomes]))


class Pursuit:
    """A script on its way: what it asks for now, and in the end its outcomes."""

    def __init__(self, wish: Wish, conversation: Conversation) -> None:
        self._script = wish.start(conversation)
        self.tells = wish.tells
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
        return self.asks[0].tool in domain.reads

    @property
    def touches(self) -> set[object]:
        return {ask.arguments[domain.key] for ask in self.asks if domain.key in ask.arguments}


def _side_by_side(waiting: list[Pursuit]) -> list[Pursuit]:
    """The first ones that may run in any order.

    All read or all write, nothing is written twice, and what is to be shown waits for all that was asked before it.
    """
    touched: set[object] = set()
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
            result = _result(made.output or "")
            if result.value is not None or not AGAIN.search(result.text):
                self._unused[_made_key(made.call)].append(result)

    def missing(self, pursuits: list[Pursuit]) -> list[Call]:
        """Calls to tools on offer that have no result yet."""
        wanted: defaultdict[Key, list[Call]] = defaultdict(list)
        for ask in self._needed(pursuits):
            wanted[self._key(ask)].append(Call.new(ask.tool, self._tools[ask.tool].fit(ask.arguments)))
        return [call for key, calls in wanted.items() for call in calls[len(self._unused[key]) :]]

    def deliver(self, pursuits: list[Pursuit]) -> None:
        shared = {self._key(ask): self._take(ask) for ask in self._needed(pursuits) if ask.tool in domain.reads}
        for pursuit in pursuits:
            pursuit.go_on([shared.get(self._key(ask)) or self._take(ask) for ask in pursuit.asks])

    def _needed(self, pursuits: list[Pursuit]) -> list[Ask]:
        asks = [ask for pursuit in pursuits for ask in pursuit.asks if ask.tool in self._tools]
        if pursuits[0].reads:
            return list({self._key(ask): ask for ask in asks}.values())
        return asks

    def _take(self, ask: Ask) -> Result:
        if ask.tool not in self._tools:
            return Result(f"I was given no tool {ask.tool}")
        return self._unused[self._key(ask)].popleft()

    def _key(self, ask: Ask) -> Key:
        """By what a call of it would send, for that is what comes back in the input."""
        tool = self._tools.get(ask.tool)
        return _key(ask.tool, tool.fit(ask.arguments) if tool else ask.arguments)


def _made_key(call: Call) -> Key:
    arguments = call.parsed()
    return (call.name, call.arguments) if arguments is None else _key(call.name, arguments)


def _key(tool: str, arguments: Json) -> Key:
    given = {name: value for name, value in arguments.items() if value is not None}
    return tool, json.dumps(given, sort_keys=True)


def _result(output: str) -> Result:
    """The output read as a model would: through a tag around it, if there is one."""
    tagged = re.fullmatch(r"<(\w+)>(.*)</\1>", output, re.DOTALL)
    try:
        value = json.loads(tagged[2] if tagged else output)
    except ValueError:
        value = None
    return Result(output, value if isinstance(value, dict) else None)


def _compose(outcomes: list[Outcome]) -> str:
    sentences: list[str] = []
    for verb, same in itertools.groupby(outcomes, key=lambda outcome: outcome.verb):
        details = [outcome.detail for outcome in same]
        sentences += [f"{verb} {enumerate_names(details)}."] if verb else details
    needs_help = not outcomes or any(outcome.verb == NOT_UNDERSTOOD for outcome in outcomes)
    return " ".join(sentences + [domain.help] * needs_help)
