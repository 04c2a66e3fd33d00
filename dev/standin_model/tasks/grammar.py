"""Hold the grammar of plain sentences about tasks: for each pattern of a clause, the plan that fulfils it.

The patterns rely on single spaces. Their groups name the parts that a plan reads: `titles` (new tasks), `targets` and
`target` (tasks that exist), `when`, `period`, `length`, `renamed`, `text`, `note`, `words` and `verb`.
"""

import re
from typing import Final

from .days import LENGTH, PERIOD, WHEN


def _any(words: str, *patterns: str) -> str:
    """Return a pattern for any of these words, which are separated by commas, and these patterns."""
    return f"(?:{'|'.join([*words.split(', '), *patterns])})"


def compiled(pattern: str) -> re.Pattern[str]:
    """Return the pattern for text in any case, over several lines."""
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


# Verbs of something done or needed

_SO_FAR: Final = r"(?: just| already| finally)*"
_PAST: Final = _any(
    "bought, called, paid, sent, wrote, written, made, took, taken, got, met, fed, read, cooked, cleaned, washed"
    ", watered, booked, fixed, picked up, packed, cancelled, printed, signed, ordered, visited, returned, emailed"
    ", walked, painted, mailed, scheduled"
)
PRESENT: Final = {
    **{"bought": "buy", "paid": "pay", "sent": "send", "wrote": "write", "written": "write", "made": "make"},
    **{"took": "take", "taken": "take", "got": "get", "met": "meet", "fed": "feed", "picked up": "pick"},
}
"""The verbs of `verb` whose present is not their past without its end."""
_I_DID: Final = rf"i(?:'m| am|'ve| have)?{_SO_FAR} {_any('finished, completed, done, did, through')}(?: with)?"
_I_PAST: Final = rf"(?:i(?:'ve| have)?{_SO_FAR} (?P<verb>{_PAST})|bought|called|paid|sent)"
_NEED: Final = (
    r"(?:i(?:'ve got to| (?:really )?(?:need to|have to|must(?: not forget to)?|should|would like to|ought to"
    r"|gotta))|i'd like to)"
)
_FORGET: Final = r"(?:(?:do not|don't) (?:let me )?forget (?:to|about)|remember to)"
_ACTION: Final = _any(
    "buy, call, pay, send, write, book, order, email, text, visit, meet, clean, wash, water, feed, walk, cook, bake"
    ", fix, repair, pick up, pack, print, sign, return, renew, study, practise, practice, prepare, plan, paint, iron"
    ", mow, sell, rent, find, get, collect, submit"
)

_EVENT: Final = _any(
    "appointment, meeting, breakfast, lunch, dinner, birthday, party, exam, interview, dentist, doctor"
)

# Clauses: where one ends, and the words around it that add nothing

_LIST: Final = r"(?:my|the) (?:\w+ )?list"
_VERB: Final = (
    _any(
        "add, create, schedule, remind me, set a reminder, make a note, i need, finish, complete, mark, uncheck, untick"
        ", reopen, delete, remove, erase, cancel, get rid of, forget about, rename, retitle, change, replace, describe"
        ", move, reschedule, postpone, push, clear, undo, list, show, what, which, how many, tell me, stand-in:",
        rf"put .{{1,80}}? (?:on|to) {_LIST}",
        r"(?:check|tick|cross) (?:off|.{1,80}? off)",
        rf"i(?:'ve| have)?{_SO_FAR} {_PAST}|bought|called|paid|sent",
        _I_DID,
        _NEED,
        _FORGET,
    )
    + r"(?!\w)"
)
_COURTESY: Final = (
    _any(
        "please, pls, could you, can you, would you, will you, hey, hi, hello, there"
        ", good (?:morning|evening|afternoon), ok, okay, and, then, also, now, so, just, kindly, oops, no(?=,), sorry"
        ", actually, wait, tell me, let me know"
        ", i (?:need|want) to know, i want to, i want you to, i would like you to, i'd like you to"
        ", thank you, thanks, thx"
    )
    + r"\b[\s,.!]*"
)
_TRAILER: Final = _any("please, pls, for me, thanks, thank you, thx, now, too, instead, again, as well")
COURTESIES: Final = compiled(rf"^(?:{_COURTESY})*|(?:[ ,.!?]{{1,4}}{_TRAILER}){{1,4}}$")
MARKS: Final = " ,.!?;\n"
_ABBREVIATION: Final = r"(?<!\b[dms]r)(?<!\bmrs)(?<!\bst)"
CLAUSE_END: Final = (
    rf"{_ABBREVIATION}[.!?;]{{1,5}} (?=(?-i:[A-Z\"“])|{_VERB})|\n|[,.;!?]{{0,5}} (?:{_COURTESY}){{0,4}}(?={_VERB})"
)
_REFUSAL: Final = _any(
    "don't, do not, never(?! mind), i don't, i do not, should i, shall i, can i, if, unless, when i, what if, why"
)
REFUSED: Final = compiled(rf"(?!{_FORGET}|i (?:don't|do not) need){_REFUSAL}\b.+")
"""A message with such a clause has no effect: the rest of it may belong to a negation, a question or a condition."""
JOINED: Final = compiled(r"(?:[,.;!?\n]|\band\b|\bthen\b)")
"""A clause ends only where a mark or one of these words is."""
BULLET: Final = re.compile(r"[:,]?\s*\n\s*(?:[-*•]|\d{1,2}[.)]) +")
QUOTED: Final = r"\"[^\"]*\"|“[^”]*”"
LIST_SEPARATOR: Final = r" ?, ?(?:and )?| and "

# Names of tasks

TITLE: Final = compiled(
    rf"(?:(?:the|an?|another(?: one)?(?: to)?) )?(?P<title>.+?)(?: (?P<when>{WHEN})(?P<rest> (?:with|about|for) .+)?)?"
)
NUMBER: Final = compiled(r"(?:the )?(?:tasks?|numbers?|no\.?)?\s*#?(\d{1,15})")
PLACES: Final = {
    **{"first": 1, "1st": 1, "second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4, "fifth": 5, "5th": 5},
    "last": -1,
}
NTH: Final = compiled(rf"(?:the )?(?P<nth>{'|'.join(PLACES)})(?: (?P<words>.+))?")
PRONOUN: Final = compiled(r"it|that|this|(?:this|that|the same) (?:one|task)|him|her")
PLURAL: Final = compiled(r"them|those|these|both(?: of them)?|all of (?:them|those)")
NTH_NOUN: Final = compiled(r"^(?:one|task|item|thing)s?\b.*$")
ARTICLE: Final = compiled(r"^(?:the|my|an?)\s+")
NOUN: Final = compiled(r"(?:^|\s+)(?:one|task|item|thing)s?$")
_WHICH: Final = r"(?:completed|finished|done|pending|open)"
EVERY: Final = compiled(
    rf"(?:everything|all)(?: of)?(?: my| the)?(?: {_WHICH})?(?: tasks| ones)?(?: that (?:is|are) {_WHICH})?"
    rf"|(?:my |the )?{_WHICH} (?:tasks|ones)|(?:my|the) (?:whole |entire )?(?:task |to-?do )?list"
)
PENDING: Final = compiled(r"\b(?:left|pending|open|to-?do|to do|remaining|unfinished|not done|next|should|must|need)\b")
COMPLETED: Final = compiled(r"\b(?:did|completed|done|finished)\b")

# Questions

ABOUT_TASKS: Final = compiled(
    r"\b(?:tasks?|list|left|due|pending|open|to-?dos?|to do|done|completed|finish(?:ed)?|everything|all|next"
    r"|anything)\b"
)
"""A question without a date is about tasks if it has one of these words."""
_SHOW: Final = (
    r"(?:(?:list|show|display|see|view|read|give)(?: me)?|what(?:'?s| is| are| have| did| do| should| must)?|which"
    r"|is there|are there|(?:do|have|am|should|must) i|is anything|are any(?:thing)?|my|all|tasks?|to-?dos?|anything)"
)
_LISTED: Final = "(?: {})".format(
    _any(
        "a, all, am, and, any, anything, are, at, be, coming, completed, do, done, due, else, everything, far, finish"
        ", finished, for, get, got, have, i, in, is, items?, left, list, me, must, my, need, needs, next, not, now"
        ", of, on, ones?, open, our, pending, remaining, should, so, still, tasks?, that, the, there, things?, to"
        ", to-?dos?, unfinished, up, with, yet"
    )
)
"""Match one word of a question about the list. A question with any other word is not understood."""
_FIND: Final = _any(
    "when's, is, are, did i(?: already)?, have i(?: already)?, when is, when do i (?:have|need) to"
    ", do i (?:have|need) to, what about, where is, find"
)

# Requests that no task can fulfil: they sound like one to add, and are addressed to the model

_A_LIST: Final = r"(?:an?|another)(?: new)? list\b"
_FOR_THE_MODEL: Final = _any(
    r"\w+ (?:me|us)\b",
    r".*\b\w+_\w+",
    rf"write (?:an? )?(?:\w+ )?{_any('poem, haiku, limerick, joke, riddle')}",
    r".*\b(?:my|the|all) (?:tasks|to-?dos|(?:task |to-?do )?list)\b",
)

# The rules

_ON_LIST: Final = rf"(?: (?:to|on|onto|in) {_LIST})"
_OFF_LIST: Final = rf"(?: (?:off|from) {_LIST})"
_TASK_TO: Final = (
    r"(?:(?:an?|the)? ?(?:new )?(?:tasks?|to-?dos?|reminders?|items?)(?: to| for| called| named)?:? "
    r"|(?:these|the following)(?: \w+)?[:,] )"
)
_ADD: Final = _any(
    "add:?, create:?, schedule, remind me(?: to| about| of)?, set a reminder(?: to| for), make a note to",
    "i (?:need|want|would like) to be reminded (?:to|about|of)",
    _NEED,
    "(?:i|we) need",
    _FORGET,
    "(?:new )?(?:task|to-?do|note(?: to self)?):",
)
_NOTE: Final = r"(?: with (?:the |a )?(?:note|description):? (?P<note>.+))?"
_DONE: Final = r"(?:done|completed?|finished|off|off (?:my|the) list)"
_UNDONE: Final = (
    r"(?:not (?:yet )?(?:done|completed?|finished)|undone|incomplete|unfinished|open|pending|to-?do)(?: yet)?"
)
_BY_NOW: Final = r"(?: already| today| yesterday| now| just now| back| this morning| last night)*"
_MOVE: Final = _any("move, reschedule, postpone, change, push, shift, set, delay, put off")

RULES: Final = (
    ("repeat", rf"(?:{_ADD}|{_ACTION}) .*\b(?:every|each) (?:\w+ )?(?:\w*day|week|month|year|morning|evening)\b.*"),
    ("show", rf"{_SHOW}{_LISTED}*?(?: (?P<period>{PERIOD}){_LISTED}*)?{_LISTED}*"),
    ("count", rf"(?:how many|count){_LISTED}*"),
    ("show", rf"how many{_LISTED}* (?P<period>{PERIOD})"),
    ("reopen", rf"(?:mark|set) (?P<targets>.+?) (?:as |to )?{_UNDONE}"),
    ("reopen", r"(?:reopen|uncheck|untick|unfinish) (?P<targets>.+)"),
    ("reopen", rf"(?P<targets>.+?) (?:(?:is|are)(?: still)? {_UNDONE}|isn't (?:done|finished)(?: yet)?)"),
    ("finish", rf"(?:mark|set|check|tick|cross) (?P<targets>.+?) (?:as |to )?{_DONE}"),
    ("finish", rf"(?:(?:finish|complete)(?:ed)?|(?:check|tick|cross|mark) off|{_I_DID}) (?P<targets>.+)"),
    ("finish", r"(?:completed|done(?: with|:)) (?P<targets>.+)"),
    ("finish", rf"{_I_PAST} (?P<targets>.+?){_BY_NOW}"),
    ("finish", rf"(?P<targets>.+?)(?: (?:is|are)(?: all| now| already)?|:) {_DONE}{_BY_NOW}"),
    ("undate", r"(?:clear|delete|remove) (?:the (?:due )?date (?:of|from) (?P<target>.+)|its (?:due )?date)"),
    ("delete all", r"(?:clear|empty) (?:my|the) (?:whole )?(?:task |to-?do )?list"),
    ("delete", rf"(?:delete|remove|erase|cancel|drop|scrap|take|get rid of) (?P<targets>.+?){_OFF_LIST}?"),
    ("delete", rf"clear (?P<targets>(?:all )?(?:my |the )?{_WHICH} (?:tasks|ones))"),
    ("delete", r"forget(?: about)? (?P<targets>.+)"),
    ("delete", r"i (?:don't|do not) need (?:to )?(?P<targets>.+?) any(?: ?more| longer)"),
    (
        "move",
        rf"{_MOVE} (?:the (?:time|date|day) of )?(?P<targets>.+?)(?: back)? (?:to|until|till|for|on) (?P<when>{WHEN})",
    ),
    ("postpone", rf"{_MOVE} (?P<target>.+?)(?: back)?(?: by)? (?P<length>{LENGTH})(?: later)?"),
    ("move", rf"(?P<target>.+?) is (?:now )?(?:due )?(?P<when>{WHEN})"),
    ("move", rf"not {WHEN},? (?:but )?(?P<when>{WHEN})"),
    ("move", rf"(?P<when>{WHEN}),? not {WHEN}"),
    ("move", rf"(?:make (?:it|that) |change (?:it|that) to |i meant? )?(?P<when>{WHEN})"),
    ("rename", r"(?:rename|retitle|change) (?:the (?:title|name) of )?(?P<target>.+?) to (?P<renamed>.+)"),
    ("rename", r"replace (?P<target>.+?) (?:with|by) (?P<renamed>.+)"),
    ("rename", r"(?:call|make) (?P<target>it|that) (?P<renamed>.+)"),
    ("describe", r"describe (?P<target>.+?) as (?P<text>.+)"),
    ("describe", r"add (?:a |the )?(?:note|description) to (?P<target>.+?): (?P<text>.+)"),
    ("undo", r"(?:undo|revert)(?: that| it| this| last| (?:the|my) last (?:change|thing))?"),
    ("undo", r"take (?:that|it) back|(?:that|it) was a mistake"),
    ("undo", r"(?:bring|put) (?:it|that|them) back|restore (?:it|that|them)"),
    ("correct", r"i meant? (?:to say )?(?P<text>.+)"),
    (
        "add",
        rf"(?:remind me|(?:set|add) a reminder|schedule)(?: for)? (?P<when>{WHEN})(?: to| about|:) (?P<titles>.+)",
    ),
    ("add", rf"(?P<when>{WHEN}),? (?:remind me to|{_NEED}) (?P<titles>.+)"),
    ("add", rf"{_ADD}(?: to {_LIST}:)? (?!{_A_LIST}){_TASK_TO}?(?P<titles>.+?){_ON_LIST}?{_NOTE}"),
    ("add", rf"(?:put|get|write) (?P<titles>.+?){_ON_LIST}"),
    ("find", rf"{_FIND} (?P<words>.+?)(?: {WHEN}| done| finished| due| on my list| yet)*"),
    ("finish", r"(?P<targets>.+?) done"),
    ("add", rf"(?:i have )?(?P<titles>(?!no )(?:(?:an?|the|my) )?(?:\w+ )?{_EVENT}(?: with .+?)? {WHEN})"),
    ("add if new", rf"(?!{_FOR_THE_MODEL})(?P<titles>{_ACTION} .+)"),
)
"""The first rule that fits a clause counts."""
