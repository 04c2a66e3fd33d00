"""Plain sentences into wishes. `docs/stand-in-model.md` lists what is understood; everything else becomes unclear."""

import re
from collections.abc import Callable, Iterator

from dev.standin_model.script import Script, Wish, any_domain, unclear

from .days import PERIOD, WHEN
from .scripts import Status, Target, add, change, each, move, show, show_due
from .undo import undo

I_DID = r"i(?:'ve| have)? (?:finished|completed|done)"
VERBS = (
    r"(?:add|create|remind me|i (?:need|have) to|finish|complete|check off|tick off|mark|delete|remove|rename|retitle"
    r"|change|describe|move|reschedule|clear the (?:due )?date|undo|list|show|what|which|how many|tell me|simulate"
    rf"|{I_DID})\b"
)
COURTESY = (
    r"(?:please|could you|can you|would you|will you|hey|hi|hello|ok|okay|and|then|also|now|so|just|kindly|oops"
    r"|i want you to|i would like you to|i'd like you to|tell me|let me know|thank you|thanks)\b[\s,.!]*"
)
MARKS = " ,.!?;\n"
QUOTED = r"\"[^\"]*\"|“[^”]*”"
CLAUSE_END = rf"[.!?;]{{1,5}} (?=(?-i:[A-Z\"“])|{VERBS})|\n|[,.;!?]{{0,5}} (?:{COURTESY}){{0,4}}(?={VERBS})"
LIST_SEPARATOR = r" ?, ?(?:and )?| and "
JOINED = re.compile(r"(?:[,.;!?\n]|\band\b|\bthen\b)", re.IGNORECASE)


def understand(text: str) -> list[Wish]:
    """Everything a message asks for, in the order in which it asks."""
    plain = re.sub(r"[^\S\n]+", " ", text.replace("\u2019", "'"))  # single spaces, for the patterns rely on them
    return [wish for clause in _cut(plain, CLAUSE_END, JOINED) if (bare := _bare(clause)) for wish in _wishes(bare)]


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
    return re.sub(r"(?:[ ,]{1,3}(?:please|for me|thanks|thank you|now)){1,4}$", "", clause, flags=re.IGNORECASE)


def _wishes(clause: str) -> list[Wish]:
    if wish := any_domain(clause):
        return [wish]
    for pattern, make in GRAMMAR:
        if found := pattern.fullmatch(clause):
            return make(found)
    return [unclear(clause)]


def _wish(script: Callable[..., Script], *arguments: object) -> Wish:
    return Wish(lambda _: script(*arguments))


def _dated_wish(script: Callable[..., Script], *arguments: object, tells: bool = False) -> Wish:
    """Return the wish of a script that reads the conversation, such as for the user's day."""
    return Wish(lambda conversation: script(conversation, *arguments), tells)


def _add(found: re.Match[str]) -> list[Wish]:
    given = found.groupdict()
    titles = [TITLE.fullmatch(title) for title in _cut(found["titles"], LIST_SEPARATOR)]
    return [
        _dated_wish(add, _unquoted(title["title"]), given.get("note"), title["when"] or given.get("when"))
        for title in titles
        if title
    ]


def _finish(found: re.Match[str]) -> list[Wish]:
    return [
        _wish(each, target, "complete_task", "Finished", "finish", "pending") for target in _targets(found["targets"])
    ]


def _delete(found: re.Match[str]) -> list[Wish]:
    return [_wish(each, target, "delete_task", "Deleted", "delete", "all") for target in _targets(found["targets"])]


def _rename(found: re.Match[str]) -> list[Wish]:
    return [_wish(change, _target(found["target"]), "title", _unquoted(found["text"]))]


def _describe(found: re.Match[str]) -> list[Wish]:
    return [_wish(change, _target(found["target"]), "description", _unquoted(found["text"]))]


def _move(found: re.Match[str]) -> list[Wish]:
    return [_dated_wish(move, _target(found["target"]), found["when"])]


def _clear(found: re.Match[str]) -> list[Wish]:
    return [_wish(change, _target(found["target"]), "due", "none")]


def _undo(_: re.Match[str]) -> list[Wish]:
    return [_dated_wish(undo)]


def _show_due(found: re.Match[str]) -> list[Wish]:
    return [_dated_wish(show_due, _status(found[0], "pending"), found["period"], tells=True)]


def _show(found: re.Match[str]) -> list[Wish]:
    return [Wish(lambda _: show(_status(found[0], "all")), tells=True)]


def _status(text: str, otherwise: Status) -> Status:
    if re.search(r"\b(?:left|pending|open|to-?do|to do|remaining|unfinished|not done)\b", text, re.IGNORECASE):
        return "pending"
    return "completed" if re.search(r"\b(?:completed|done|finished)\b", text, re.IGNORECASE) else otherwise


def _targets(text: str) -> list[Target]:
    return [_target(part) for part in _cut(text, LIST_SEPARATOR) if part]


def _target(text: str) -> Target:
    if found := re.fullmatch(r"(?:the )?(?:task|number|no\.?)?\s*#?(\d{1,15})", text, re.IGNORECASE):
        return Target(task_id=int(found[1]))
    if EVERY.fullmatch(text):
        status = _status(text, "all")
        return Target(every="any" if status == "all" else status)
    words = re.sub(r"^(?:the|my|an?)\s+|\s+(?:one|task)$", "", text, flags=re.IGNORECASE)
    return Target(words=_unquoted(words))


def _unquoted(text: str) -> str:
    return text.strip().strip('"“”').strip()


WHICH = r"(?:completed|finished|done|pending|open)"
EVERY = re.compile(
    rf"(?:everything|all)(?: of)?(?: my| the)?(?: {WHICH})?(?: tasks| ones)?(?: that (?:is|are) {WHICH})?"
    rf"|(?:my |the )?{WHICH} (?:tasks|ones)",
    re.IGNORECASE,
)

Grammar = tuple[tuple[str, Callable[[re.Match[str]], list[Wish]]], ...]
TITLE = re.compile(rf"(?:(?:the|an?) )?(?P<title>.+?)(?: (?P<when>{WHEN}))?", re.IGNORECASE | re.DOTALL)
SHOWN = r"tasks?|list|left|due|pending|open|to-?do|to do|done|completed|finished|everything|all"
TASK_TO = r"(?:an?|the)? ?(?:new )?(?:tasks?|to-?dos?|reminders?)(?: to| for| called| named)?:? "
RULES: Grammar = (
    (r"mark (?P<targets>.+?) (?:as )?(?:done|completed?|finished)", _finish),
    (rf"(?:finish|complete|check off|tick off|{I_DID}) (?P<targets>.+)", _finish),
    (r"(?:clear|delete|remove) the (?:due )?date (?:of|from) (?P<target>.+)", _clear),
    (r"(?:delete|remove) (?P<targets>.+)", _delete),
    (r"(?:rename|retitle|change) (?:the title of )?(?P<target>.+?) to (?P<text>.+)", _rename),
    (r"describe (?P<target>.+?) as (?P<text>.+)", _describe),
    (rf"(?:move|reschedule) (?P<target>.+?) to (?P<when>{WHEN})", _move),
    (r"undo(?: that| it| this| the last change)?", _undo),
    (rf"(?:list|show|what|which|how many)\b.*? (?P<period>{PERIOD})(?: tasks)?", _show_due),
    (rf"(?:list|show)|(?:list|show|what|which|how many)\b.*\b(?:{SHOWN})\b.*", _show),
    (rf"remind me (?P<when>{WHEN}) to (?P<titles>.+)", _add),
    (
        rf"(?:add|create|remind me to|i (?:need|have) to) (?:{TASK_TO})?(?P<titles>.+?)"
        r"(?: (?:to|on) my (?:task |to-?do )?list)?(?: with (?:the |a )?(?:note|description):? (?P<note>.+))?",
        _add,
    ),
)
GRAMMAR = [(re.compile(pattern, re.IGNORECASE | re.DOTALL), make) for pattern, make in RULES]
