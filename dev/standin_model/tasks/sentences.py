"""Plain sentences into wishes. `docs/stand-in-model.md` lists what is understood; everything else becomes unclear."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from dev.standin_model.conversation import Conversation
from dev.standin_model.script import Ask, Outcome, Script, Trouble, Wish, any_domain, not_understood, say

from . import scripts
from .days import LENGTH, PERIOD, WHEN
from .references import CHANGES, listed, newest_changes
from .scripts import Status, Target
from .undo import undo

# The words that begin a clause, and those that add nothing to it.

I_DID = r"i(?:'m| am|'ve| have)?(?: just| already| finally)* (?:finished|completed|done|did|through)(?: with)?"
PAST = (
    r"bought|called|paid|sent|wrote|written|made|took|taken|got|met|fed|read|cooked|cleaned|washed|watered|booked|fixed"
    r"|picked up|packed|cancelled|printed|signed|ordered|visited|returned|emailed|walked|painted|mailed|scheduled"
)
I_PAST = rf"i(?:'ve| have)?(?: just| already| finally)* (?P<verb>{PAST})"
NEED = r"i(?:'ve got to| (?:really )?(?:need to|have to|must(?: not forget to)?|should|want to|would like to|ought to|gotta))|i'd like to"
FORGET = r"(?:do not|don't) (?:let me )?forget (?:to|about)"
VERBS = (
    r"(?:add|create|schedule|remind me|set a reminder|make a note|put .{1,80}? (?:on|to) (?:my|the) (?:\w+ )?list|i need|finish|complete"
    r"|(?:check|tick|cross) (?:off|.{1,80}? off)|mark|uncheck|untick|reopen|delete|remove|erase|cancel|get rid of|forget about"
    r"|rename|retitle|change|replace|describe|move|reschedule|postpone|push|clear|undo|list|show|what|which|how many|tell me"
    rf"|simulate|stand-in:|{I_DID}|i(?:'ve| have)?(?: just| already| finally)* (?:{PAST})|{NEED}|{FORGET})(?!\w)"
)
COURTESY = (
    r"(?:please|could you|can you|would you|will you|hey|hi|hello|good (?:morning|evening|afternoon)|there|ok|okay|and|then"
    r"|also|now|so|just|kindly|oops|no(?=,)|sorry|actually|wait|i want you to|i would like you to|i'd like you to|tell me"
    r"|let me know|thank you|thanks|pls)\b[\s,.!]*"
)
TRAILER = r"(?:[ ,.!?]{1,4}(?:please|pls|for me|thanks|thank you|now|too|instead|again|as well)){1,4}$"
MARKS = " ,.!?;\n"
QUOTED = r"\"[^\"]*\"|“[^”]*”"
ABBREVIATION = r"(?<!\b[dms]r)(?<!\bmrs)(?<!\bst)"
CLAUSE_END = (
    rf"{ABBREVIATION}[.!?;]{{1,5}} (?=(?-i:[A-Z\"“])|{VERBS})|\n|[,.;!?]{{0,5}} (?:{COURTESY}){{0,4}}(?={VERBS})"
)
LIST_SEPARATOR = r" ?, ?(?:and )?| and "
JOINED = re.compile(r"(?:[,.;!?\n]|\band\b|\bthen\b)", re.IGNORECASE)
BULLET = re.compile(r"[:,]?\s*\n\s*(?:[-*•]|\d{1,2}[.)]) +")

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A clause that a rule fits, and the tasks that the message names before it."""

    found: re.Match[str]
    before: Names = ()

    def __getitem__(self, name: str) -> str:
        """Return the text of a group, or nothing if the rule or the clause has none."""
        return self.found.groupdict().get(name) or ""

    def targets(self) -> list[Target]:
        """Return the tasks that are meant."""
        verb = _PRESENT.get(self["verb"].lower(), re.sub(r"(?:ed|ped|led)?$", "", self["verb"].lower()))
        parts = [part for part in _cut(self["targets"], LIST_SEPARATOR) if part]
        return [target for part in parts for target in _targets(part, self.before, verb)]

    def target(self) -> Target:
        """Return the one task that is meant; `its date` names none."""
        [first, *others] = _targets(self["target"] or "it", self.before)
        return Target(is_plural=True) if others else first

    def titles(self) -> list[re.Match[str]]:
        """Return the new tasks, each with its date."""
        parts = (TITLE.fullmatch(part.strip()) for part in _cut(self["titles"], LIST_SEPARATOR))
        return [title for title in parts if title]

    def names(self) -> Names:
        """Return the words by which the next clause may mean these tasks: `it`."""
        if self["titles"]:
            return tuple(_title(title) for title in self.titles())
        if self["renamed"]:
            return (_unquoted(self["renamed"]),)
        words = [target.words for target in (self.targets() if self["targets"] else [self.target()]) if target.words]
        return tuple(words) or self.before


def understand(text: str) -> list[Wish]:
    """Everything a message asks for, in the order in which it asks."""
    wishes: list[Wish] = []
    before: Names = ()
    for clause in _clauses(text):
        if wish := any_domain(clause.strip(MARKS)):
            wishes.append(wish)
        elif bare := _bare(clause):
            more, before = _wishes(bare, before)
            wishes += more
    return wishes


def _clauses(text: str) -> Iterator[str]:
    listed = BULLET.sub(", ", text.replace("\u2019", "'"))
    return _cut(re.sub(r"[^\S\n]+", " ", listed), CLAUSE_END, JOINED)  # single spaces, for the patterns rely on them


def _cut(text: str, separator: str, joined: re.Pattern[str] | None = None) -> Iterator[str]:
    """Cut at separators outside quotes; where `joined` is given, only at those that hold a joining word or mark."""
    start = 0
    for found in re.finditer(rf"(?:{QUOTED})|(?P<cut>{separator})", text, re.IGNORECASE):
        if found["cut"] and (joined is None or joined.search(found["cut"])):
            yield text[start : found.start()]
            start = found.end()
    yield text[start:]


def _bare(clause: str) -> str:
    """The clause without courtesies and without the punctuation around it."""
    clause = re.sub(rf"^(?:{COURTESY})*", "", clause.strip(MARKS), flags=re.IGNORECASE)
    return re.sub(TRAILER, "", clause, flags=re.IGNORECASE)


def _wishes(clause: str, before: Names) -> tuple[list[Wish], Names]:
    """Return the wishes of a clause, and the names by which the next one may mean its tasks."""
    if wish := any_domain(clause):
        return [wish], before
    for pattern, make in GRAMMAR:
        if (found := pattern.fullmatch(clause)) and (wishes := make(said := Said(found, before))):
            return wishes, said.names() if {"titles", "targets", "target"} & found.groupdict().keys() else before
    return [Wish(lambda conversation: _answer(conversation, clause))], before


# What each rule makes of its clause


def _wish(script: Callable[..., Script], *arguments: object, tells: bool = False) -> Wish:
    return Wish(lambda conversation: script(conversation, *arguments), tells)


def _add(said: Said) -> list[Wish]:
    when = said["when"]
    return [
        _wish(scripts.add, _title(title), _unquoted(said["note"]), title["when"] or when) for title in said.titles()
    ]


def _title(title: re.Match[str]) -> str:
    return _unquoted(title["title"]) + (title["rest"] or "")


def _act(said: Said) -> list[Wish]:
    """Add a task that the message only names, unless it answers a question with the title of a task."""
    text = said["titles"]
    [wish, *more] = _add(said)
    return [Wish(lambda c: _answer(c, text) if text.lower() in _asked(c) else wish.start(c)), *more]


def _for_each(script: Callable[..., Script], said: Said) -> list[Wish]:
    return [_wish(script, target) for target in said.targets()]


def _delete_all(_: Said) -> list[Wish]:
    return [_wish(scripts.delete, Target(every="any"))]


def _rename(said: Said) -> list[Wish]:
    return [_wish(scripts.change, said.target(), "title", _unquoted(said["renamed"]))]


def _describe(said: Said) -> list[Wish]:
    return [_wish(scripts.change, said.target(), "description", _unquoted(said["text"]))]


def _move(said: Said) -> list[Wish]:
    return [_wish(scripts.move, said.target(), said["when"])]


def _move_it(said: Said) -> list[Wish]:
    [target] = _targets("it", said.before)
    return [_wish(scripts.move, target, said["when"])]


def _postpone(said: Said) -> list[Wish]:
    return [_wish(scripts.postpone, said.target(), said["length"])]


def _clear(said: Said) -> list[Wish]:
    return [_wish(scripts.change, said.target(), "due", "none")]


def _undo(_: Said) -> list[Wish]:
    return [_wish(undo)]


def _show(said: Said) -> list[Wish]:
    if said["period"]:
        return [_wish(scripts.show_due, _status(said.found[0], "pending"), said["period"], tells=True)]
    if not re.search(rf"\b(?:{SHOWN})\b", said.found[0], re.IGNORECASE):
        return []
    return [_wish(scripts.show, _status(said.found[0], "all"), tells=True)]


def _count(_: Said) -> list[Wish]:
    return [_wish(scripts.count, tells=True)]


def _find(said: Said) -> list[Wish]:
    return [_wish(scripts.find, _target(said["words"]).words or said["words"], tells=True)]


def _correct(said: Said) -> list[Wish]:
    return [_wish(correct, _unquoted(said["text"]))]


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


def correct(conversation: Conversation, text: str) -> Script:
    """Undo the last change and make it for the task that was meant, or rename the task that was added last."""
    changes = newest_changes(conversation)
    if not changes:
        raise Trouble(scripts.WHICH)
    if changes[-1].call.name == "add_task":
        return (yield from scripts.change(conversation, Target(is_reference=True), "title", text))
    repeated = _with_target(
        next(turn.message for turn in reversed(conversation.turns) if changes[-1] in turn.calls), text
    )
    undone: list[Outcome] = yield from undo(conversation)
    return undone + ((yield from repeated.start(conversation)) if repeated else [])


def _with_target(message: str, text: str) -> Wish | None:
    """Return the last wish of the message that names a task, for the task that the text names."""
    for clause in reversed([_bare(clause) for clause in _clauses(message)]):
        for pattern, make in GRAMMAR:
            if (found := pattern.fullmatch(clause)) and (wishes := make(Said(found))):
                group = next((name for name in ("target", "targets") if found.groupdict().get(name)), None)
                if group is None:
                    break
                return _replaced(found, group, text)
    return None


def _replaced(found: re.Match[str], group: str, text: str) -> Wish | None:
    if place := NTH.fullmatch(text):
        words = re.sub(r"^(?:the|my|an?)\s+", "", found[group], flags=re.IGNORECASE)
        text = f"the {place['nth']} {words}"
    clause = found.string[: found.start(group)] + text + found.string[found.end(group) :]
    [wish, *_], _ = _wishes(clause, ())
    return wish


# The tasks that a text names


def _targets(text: str, before: Names = (), verb: str = "") -> list[Target]:
    if PLURAL.fullmatch(text):
        return [Target(words=name) for name in before] or [Target(is_plural=True)]
    if PRONOUN.fullmatch(text):
        return [Target(words=before[-1], nth=-1)] if before else [Target(is_reference=True)]
    return [_target(text, verb)]


def _target(text: str, verb: str = "") -> Target:
    if found := re.fullmatch(r"(?:the )?(?:task|number|no\.?)?\s*#?(\d{1,15})", text, re.IGNORECASE):
        return Target(task_id=int(found[1]))
    if EVERY.fullmatch(text):
        status = _status(text, "all")
        return Target(every="any" if status == "all" else status)
    if found := NTH.fullmatch(text):
        words = re.sub(r"^(?:one|task|item|thing)s?$", "", found["words"] or "", flags=re.IGNORECASE)
        return Target(words=words, nth=_PLACES[found["nth"].lower()])
    words = re.sub(r"^(?:the|my|an?)\s+|\s+(?:one|task)$", "", text, flags=re.IGNORECASE)
    return Target(words=_unquoted(words), verb=verb)


def _status(text: str, otherwise: Status) -> Status:
    if re.search(rf"\b(?:{PENDING})\b", text, re.IGNORECASE):
        return "pending"
    return "completed" if re.search(r"\b(?:completed|done|finished)\b", text, re.IGNORECASE) else otherwise


def _unquoted(text: str) -> str:
    return text.strip().strip('"“”').strip()


_PRESENT: Final = {
    **{"bought": "buy", "paid": "pay", "sent": "send", "wrote": "write", "written": "write", "made": "make"},
    **{"took": "take", "taken": "take", "got": "get", "met": "meet", "fed": "feed", "picked up": "pick"},
}
_PLACES: Final = {
    place: number
    for number, places in enumerate(
        (("first", "1st"), ("second", "2nd"), ("third", "3rd"), ("fourth", "4th"), ("fifth", "5th")), 1
    )
    for place in places
} | {"last": -1}
PRONOUN = re.compile(r"it|that|this|(?:this|that|the same) (?:one|task)|him|her", re.IGNORECASE)
PLURAL = re.compile(r"them|those|these|both(?: of them)?|all of (?:them|those)", re.IGNORECASE)
NTH = re.compile(rf"(?:the )?(?P<nth>{'|'.join(_PLACES)})(?: (?P<words>.+))?", re.IGNORECASE)
PENDING = r"left|pending|open|to-?do|to do|remaining|unfinished|not done|next|should|must|need"
WHICH = r"(?:completed|finished|done|pending|open)"
EVERY = re.compile(
    rf"(?:everything|all)(?: of)?(?: my| the)?(?: {WHICH})?(?: tasks| ones)?(?: that (?:is|are) {WHICH})?"
    rf"|(?:my |the )?{WHICH} (?:tasks|ones)|(?:my|the) (?:whole |entire )?(?:task |to-?do )?list",
    re.IGNORECASE,
)

# The grammar: the first rule that fits a clause makes its wishes.

Grammar = tuple[tuple[str, Callable[[Said], list[Wish]]], ...]
TITLE = re.compile(
    rf"(?:(?:the|an?) )?(?P<title>.+?)(?: (?P<when>{WHEN})(?P<rest> (?:with|about|for|to) .+)?)?",
    re.IGNORECASE | re.DOTALL,
)
SHOWN = r"tasks?|list|left|due|pending|open|to-?dos?|to do|done|completed|finished|everything|all|next|anything"
SHOW = (
    r"(?:(?:list|show|display|see|view|read|give)(?: me)?|what(?:'s| is| are| have| do| should| must)?|which|is there|are there"
    r"|(?:do|have|am|should|must) i|my|all|tasks?|to-?dos?|anything)"
)
LISTED = (
    r"a|all|am|and|any|anything|are|at|completed|do|done|due|else|everything|finished|for|get|got|have|i|in|is|item|items|left"
    r"|list|me|must|my|need|needs|next|not|now|of|on|ones?|open|our|pending|remaining|should|so|still|tasks?|that|the|there|things?"
    r"|to|to-?dos?|unfinished|up|with|yet|be|coming|far"
)
ON_LIST = r"(?: (?:to|on|onto|in) (?:my|the) (?:\w+ )?list)"
TASK_TO = r"(?:an?|the)? ?(?:new )?(?:tasks?|to-?dos?|reminders?|items?)(?: to| for| called| named)?:? |(?:these|the following)(?: \w+)?[:,] "
NOTE = r"(?: with (?:the |a )?(?:note|description):? (?P<note>.+))?"
ACTIONS = (
    r"buy|call|pay|send|write|book|order|email|text|visit|meet|clean|wash|water|feed|walk|cook|bake|fix|repair|pick up|pack"
    r"|print|sign|return|renew|study|practise|practice|prepare|plan|paint|iron|mow|sell|rent|find|collect|submit"
)
DONE = r"(?:done|completed?|finished|off|off (?:my|the) list)"
UNDONE = r"(?:not (?:yet )?(?:done|completed?|finished)|undone|incomplete|unfinished|open|pending|to-?do)(?: yet)?"
BY_NOW = r"(?: already| today| yesterday| now| just now| back| this morning| last night)*"
RULES: Grammar = (
    (rf"(?:{SHOW})(?: (?:{LISTED}))*?(?: (?P<period>{PERIOD})(?: (?:{LISTED}))*)?(?: (?:{LISTED}))*", _show),
    (rf"(?:how many|count)(?: (?:{LISTED}))*", _count),
    (rf"how many(?: (?:{LISTED}))* (?P<period>{PERIOD})", _show),
    (rf"(?:mark|set) (?P<targets>.+?) (?:as |to )?{UNDONE}", partial(_for_each, scripts.reopen)),
    (r"(?:reopen|uncheck|untick|unfinish) (?P<targets>.+)", partial(_for_each, scripts.reopen)),
    (
        rf"(?P<targets>.+?) (?:(?:is|are)(?: still)? {UNDONE}|isn't (?:done|finished)(?: yet)?)",
        partial(_for_each, scripts.reopen),
    ),
    (rf"(?:mark|set|check|tick|cross) (?P<targets>.+?) (?:as |to )?{DONE}", partial(_for_each, scripts.finish)),
    (
        rf"(?:finish|complete|(?:check|tick|cross|mark) off|{I_DID}|done(?: with|:)) (?P<targets>.+)",
        partial(_for_each, scripts.finish),
    ),
    (rf"{I_PAST} (?P<targets>.+?){BY_NOW}", partial(_for_each, scripts.finish)),
    (rf"(?P<targets>.+?)(?: (?:is|are)(?: all| now| already)?|:) {DONE}{BY_NOW}", partial(_for_each, scripts.finish)),
    (r"(?:clear|delete|remove) (?:the (?:due )?date (?:of|from) (?P<target>.+)|its (?:due )?date)", _clear),
    (r"(?:clear|empty) (?:my|the) (?:whole )?(?:task |to-?do )?list", _delete_all),
    (
        rf"(?:delete|remove|erase|cancel|drop|scrap|get rid of|forget(?: about)?|take) (?P<targets>.+?)(?: (?:off|from) (?:my|the) list)?",
        partial(_for_each, scripts.delete),
    ),
    (r"i (?:don't|do not) need (?:to )?(?P<targets>.+?) any(?: ?more| longer)", partial(_for_each, scripts.delete)),
    (
        rf"(?:move|reschedule|postpone|change|push|shift|set|put off) (?P<target>.+?)(?: back)? (?:to|until|till|for|on) (?P<when>{WHEN})",
        _move,
    ),
    (rf"(?:move|postpone|push|delay|put off) (?P<target>.+?)(?: back)? by (?P<length>{LENGTH})", _postpone),
    (rf"(?P<target>.+?) is (?:now )?(?:due )?(?P<when>{WHEN})", _move),
    (rf"(?:make (?:it|that) |change (?:it|that) to |i meant? )?(?P<when>{WHEN})", _move_it),
    (r"(?:rename|retitle|change) (?:the (?:title|name) of )?(?P<target>.+?) to (?P<renamed>.+)", _rename),
    (r"replace (?P<target>.+?) (?:with|by) (?P<renamed>.+)", _rename),
    (r"call (?P<target>it|that) (?P<renamed>.+)", _rename),
    (r"describe (?P<target>.+?) as (?P<text>.+)", _describe),
    (r"add (?:a |the )?(?:note|description) to (?P<target>.+?): (?P<text>.+)", _describe),
    (
        r"undo(?: that| it| this| the last change)?|revert(?: that| it)?|take (?:that|it) back|(?:that|it) was a mistake",
        _undo,
    ),
    (r"i meant? (?:to say )?(?P<text>.+)", _correct),
    (
        rf"(?:remind me|set a reminder|add a reminder|schedule)(?: for)? (?P<when>{WHEN})(?: to| about|:) (?P<titles>.+)",
        _add,
    ),
    (rf"(?P<when>{WHEN}),? (?:remind me to|{NEED}) (?P<titles>.+)", _add),
    (
        rf"(?:add|create|schedule|remind me(?: to| about| of)|set a reminder(?: to| for)|make a note to|{NEED}|i need|{FORGET}"
        rf"|(?:new )?(?:task|to-?do|note):)(?: to (?:my|the) list:)? (?:{TASK_TO})?(?P<titles>.+?){ON_LIST}?{NOTE}",
        _add,
    ),
    (rf"(?:put|get|write) (?P<titles>.+?){ON_LIST}", _add),
    (
        r"(?:is|are|did i(?: already)?|have i(?: already)?|when is|when do i (?:have|need) to|what about|where is|do i (?:have|need) to|find) (?P<words>.+?)(?: done| finished| due| on my list| yet)*",
        _find,
    ),
    (rf"(?P<titles>(?:{ACTIONS}) .+)", _act),
)
GRAMMAR = [(re.compile(pattern, re.IGNORECASE | re.DOTALL), make) for pattern, make in RULES]
