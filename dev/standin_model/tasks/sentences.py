"""Turn plain sentences into wishes. `docs/stand-in-model.md` lists them; everything else becomes unclear."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from dev.standin_model.conversation import Conversation
from dev.standin_model.script import Outcome, Script, Trouble, Wish, any_domain, not_understood, say, unclear

from . import grammar, scripts
from .references import CHANGES, listed, newest_changes
from .scripts import Status, Target
from .undo import undo

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A clause that a rule fits, and the tasks that the message names before it."""

    plan: str
    found: re.Match[str]
    before: Names = ()

    def __getitem__(self, group: str) -> str:
        """Return the text of a group, or nothing if the rule or the clause has none."""
        return self.found.groupdict().get(group) or ""

    def plain(self, group: str) -> str:
        """Return the text of a group without the quotes around it."""
        return _unquoted(self[group])

    def targets(self) -> list[Target]:
        """Return the tasks that are meant."""
        past = self["verb"].lower()
        verb = grammar.PRESENT.get(past, re.sub(r"(?:ed|ped|led)?$", "", past))
        parts = [part for part in _cut(self["targets"], grammar.LIST_SEPARATOR) if part]
        return [target for part in parts for target in _targets(part, self.before, verb)]

    def target(self) -> Target:
        """Return the one task that is meant: `it` if the clause names none."""
        [first, *others] = _targets(self["target"] or "it", self.before)
        return Target(is_plural=True) if others else first

    def titles(self) -> list[re.Match[str]]:
        """Return the new tasks, each with its date."""
        parts = (grammar.TITLE.fullmatch(part.strip()) for part in _cut(self["titles"], grammar.LIST_SEPARATOR))
        return [title for title in parts if title]

    def names(self) -> Names:
        """Return the words by which the next clause may mean these tasks: `it`."""
        if self["titles"]:
            return tuple(_title(title) for title in self.titles())
        if self["renamed"]:
            return (self.plain("renamed"),)
        targets = self.targets() + [self.target()] * bool(self["target"])
        return tuple(target.words for target in targets if target.words) or self.before

    def wishes(self) -> list[Wish]:
        """Return what the clause asks for, or nothing if its plan cannot tell."""
        return _PLANS[self.plan](self)


def understand(text: str) -> list[Wish]:
    """Return everything that a message asks for, in its order."""
    clauses = list(_clauses(text))
    if any(grammar.REFUSED.fullmatch(_bare(clause)) for clause in clauses):
        return [unclear(text)]
    wishes: list[Wish] = []
    before: Names = ()
    for clause in clauses:
        if wish := any_domain(clause.strip(grammar.MARKS)):
            wishes.append(wish)
        elif bare := _bare(clause):
            more, before = _wishes(bare, before)
            wishes += more
    return wishes


def _clauses(text: str) -> Iterator[str]:
    one_line = re.sub(r"[^\S\n]+", " ", grammar.BULLET.sub(", ", text.replace("\u2019", "'")))
    return _cut(one_line, grammar.CLAUSE_END, grammar.JOINED)


def _cut(text: str, separator: str, joined: re.Pattern[str] | None = None) -> Iterator[str]:
    """Cut at separators outside quotes; where `joined` is given, only at those that hold a joining word or mark."""
    start = 0
    for found in re.finditer(rf"(?:{grammar.QUOTED})|(?P<cut>{separator})", text, re.IGNORECASE):
        if found["cut"] and (joined is None or joined.search(found["cut"])):
            yield text[start : found.start()]
            start = found.end()
    yield text[start:]


def _bare(clause: str) -> str:
    """Return the clause without courtesies and without the punctuation around it."""
    return grammar.COURTESIES.sub("", clause.strip(grammar.MARKS))


def _wishes(clause: str, before: Names = ()) -> tuple[list[Wish], Names]:
    """Return the wishes of a clause, and the names by which the next one may mean its tasks."""
    if wish := any_domain(clause):
        return [wish], before
    for said in _readings(clause, before):
        if wishes := said.wishes():
            return wishes, said.names()
    return [Wish(lambda conversation: _answer(conversation, clause))], before


def _readings(clause: str, before: Names = ()) -> Iterator[Said]:
    """Yield each rule that fits the clause."""
    for plan, pattern in _RULES:
        if found := pattern.fullmatch(clause):
            yield Said(plan, found, before)


_RULES: Final = [(plan, grammar.compiled(pattern)) for plan, pattern in grammar.RULES]

# The plans


def _wish(script: Callable[..., Script], *arguments: object, tells: bool = False) -> Wish:
    return Wish(lambda conversation: script(conversation, *arguments), tells)


def _add(said: Said) -> list[Wish]:
    note, when = said.plain("note"), said["when"]
    return [_wish(scripts.add, _title(title), note, title["when"] or when) for title in said.titles()]


def _title(title: re.Match[str]) -> str:
    return _unquoted(title["title"]) + (title["rest"] or "")


def _add_if_new(said: Said) -> list[Wish]:
    """Add a task that the message only names, unless it answers a question with the title of a task."""
    text = said["titles"]
    [wish, *more] = _add(said)
    return [Wish(lambda c: _answer(c, text) if text.lower() in _asked(c) else wish.start(c)), *more]


def _for_each(script: Callable[..., Script], said: Said) -> list[Wish]:
    return [_wish(script, target) for target in said.targets()]


def _show(said: Said) -> list[Wish]:
    clause, period = said.found[0], said["period"]
    if period:
        return [_wish(scripts.show_due, _status(clause, "pending"), period, tells=True)]
    return [_wish(scripts.show, _status(clause, "all"), tells=True)] if grammar.ABOUT_TASKS.search(clause) else []


def _find(said: Said) -> list[Wish]:
    return [_wish(scripts.find, _target(said["words"]).words or said["words"], tells=True)]


_PLANS: Final[dict[str, Callable[[Said], list[Wish]]]] = {
    "add": _add,
    "add if new": _add_if_new,
    "repeat": lambda _: [Wish(lambda _: say(Outcome("A task cannot repeat. On which day is it due?")))],
    "show": _show,
    "count": lambda _: [_wish(scripts.count, tells=True)],
    "find": _find,
    "finish": partial(_for_each, scripts.finish),
    "reopen": partial(_for_each, scripts.reopen),
    "delete": partial(_for_each, scripts.delete),
    "delete all": lambda _: [_wish(scripts.delete, Target(every="any"))],
    "move": lambda said: [_wish(scripts.move, each, said["when"]) for each in said.targets() or [said.target()]],
    "postpone": lambda said: [_wish(scripts.postpone, said.target(), said["length"])],
    "undate": lambda said: [_wish(scripts.change, said.target(), "due", "none")],
    "rename": lambda said: [_wish(scripts.change, said.target(), "title", said.plain("renamed"))],
    "describe": lambda said: [_wish(scripts.change, said.target(), "description", said.plain("text"))],
    "undo": lambda _: [_wish(undo)],
    "correct": lambda said: [_wish(_correct, said.plain("text"))],
}

# Answers and corrections: they read what the person said before


def _answer(conversation: Conversation, text: str) -> Script:
    """Take the text for the answer to a question, or for one that is not understood."""
    answered = _asked(conversation) and _with_target(conversation.turns[-2].message, text)
    return answered.start(conversation) if answered else say(not_understood(text))


def _asked(conversation: Conversation) -> list[str]:
    """Return the titles that the turn before listed, if it changed nothing: then it may have asked which was meant."""
    turns = conversation.turns
    if len(turns) < 2 or any(made.call.name in CHANGES for made in turns[-2].calls):
        return []
    return [task["title"].lower() for task in listed(turns[-2])]


def _correct(conversation: Conversation, text: str) -> Script:
    """Undo the last change and make it for the task that was meant, or rename the task that was added last."""
    changes = newest_changes(conversation)
    if not changes:
        raise Trouble(scripts.WHICH)
    if changes[-1].call.name == "add_task":
        return (yield from scripts.change(conversation, Target(is_reference=True), "title", text))
    message = next(turn.message for turn in reversed(conversation.turns) if changes[-1] in turn.calls)
    undone: list[Outcome] = yield from undo(conversation)
    repeated = _with_target(message, text)
    return undone + ((yield from repeated.start(conversation)) if repeated else [])


def _with_target(message: str, text: str) -> Wish | None:
    """Return the last wish of the message that names a task, for the task that the text names."""
    for clause in reversed([_bare(clause) for clause in _clauses(message)]):
        said = next(_readings(clause), None)
        group = said and next((group for group in ("target", "targets") if said[group]), None)
        if said and group:
            return _replaced(said, group, text)
    return None


def _replaced(said: Said, group: str, text: str) -> Wish:
    """Return the wish of the clause with another text in place of a group."""
    if place := grammar.NTH.fullmatch(text):
        text = f"the {place['nth']} {grammar.ARTICLE.sub('', said[group])}"
    clause, found = said.found.string, said.found
    [wish, *_], _ = _wishes(clause[: found.start(group)] + text + clause[found.end(group) :])
    return wish


# The tasks that a text names


def _targets(text: str, before: Names = (), verb: str = "") -> list[Target]:
    if grammar.PLURAL.fullmatch(text):
        return [Target(words=name) for name in before] or [Target(is_plural=True)]
    if grammar.PRONOUN.fullmatch(text):
        return [Target(words=before[-1], nth=-1)] if before else [Target(is_reference=True)]
    return [_target(text, verb)]


def _target(text: str, verb: str = "") -> Target:
    if found := grammar.NUMBER.fullmatch(text):
        return Target(task_id=int(found[1]))
    if grammar.EVERY.fullmatch(text):
        status = _status(text, "all")
        return Target(every="any" if status == "all" else status)
    if found := grammar.NTH.fullmatch(text):
        return Target(words=grammar.NTH_NOUN.sub("", found["words"] or ""), nth=grammar.PLACES[found["nth"].lower()])
    return Target(words=_unquoted(grammar.NOUN.sub("", grammar.ARTICLE.sub("", text))), verb=verb)


def _status(text: str, otherwise: Status) -> Status:
    if grammar.PENDING.search(text):
        return "pending"
    return "completed" if grammar.COMPLETED.search(text) else otherwise


def _unquoted(text: str) -> str:
    return text.strip().strip('"“”').strip()
