"""Remove invisible characters from a text, except those that its script needs.

A model reads characters that no person sees, and a hidden text can be written with them. Between two visible characters
stay at most one selector, one joiner or break, and one mark of direction, each only beside characters that it changes.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Final
from unicodedata import category, combining

_INVISIBLE: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
)
"""Characters that a program may show as nothing, controls that reorder or annotate text, and noncharacters."""

_EMOJI: Final = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u2300-\u23ff\u24c2\u25a0-\u27bf\u2934\u2935"
    "\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_IDEOGRAPH: Final = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RIGHT_TO_LEFT: Final = (
    "\u0590-\u061b\u061d-\u08ff\ufb1d-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
)
_CURSIVE: Final = (
    "\u0600-\u061b\u061d-\u07ff\u0840-\u08ff\u1800-\u180a\u1810-\u18aa\ua840-\ua877\ufb50-\ufdcf\ufdf0-\ufdff"
    "\ufe70-\ufefc\U00010ac0-\U00010aff\U00010b80-\U00010baf\U00010d00-\U00010d8f\U00010ec0-\U00010eff"
    "\U00010f30-\U00010fdf\U0001e900-\U0001e95f"
)
"""Scripts whose letters join. A joiner or a non-joiner changes their form."""
_STACKING: Final = (
    "\u0590-\u05ff\ufb1d-\ufb4f\u0900-\u0ddf\u0de0-\u0dff\u0f00-\u109f\u1700-\u17b3\u17b6-\u17ff\u1900-\u1cff"
    "\ua800-\ua82f\ua880-\ua95f\ua980-\ua9ff\uaa00-\uaaff\uabc0-\uabff\U00010a00-\U00010a5f\U00011000-\U00011fff"
)
"""Scripts whose signs hang on a letter or make two letters one. A joiner beside such a sign changes its form."""
_SPACELESS: Final = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17b3\u17b6-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1bbf"
    "\ua980-\ua9ff\uaa60-\uaadf"
)
"""Scripts without spaces between words. An invisible space marks where a line may break."""

_SELECTED: Final = re.compile(
    f"[{_EMOJI}][\ufe0e\ufe0f]."
    "|[#*0-9]\ufe0f\u20e3"
    f"|[{_IDEOGRAPH}][\ufe00-\ufe02\U000e0100-\U000e011f]."  # no ideograph has more registered variants
    "|[\u3001\u3002\uff01\uff0c\uff0e\uff1a\uff1b\uff1f][\ufe00\ufe01]."
    "|[\u2200-\u22ff\u2a00-\u2aff\u1000-\u109f\uaa60-\uaa7f\ua840-\ua877\U00010ac0-\U00010aff]\ufe00."
    "|[\u1820-\u18aa][\u180b-\u180d\u180f]."
    "|[\U00013000-\U0001342f][\ufe00-\ufe06].",
    re.DOTALL,
)
"""A selector between its base and the next character."""
_JOINED: Final = re.compile(
    f"[{_EMOJI}]\u200d[{_EMOJI}]"
    f"|[{_CURSIVE}][\u200c\u200d].|.[\u200c\u200d][{_CURSIVE}]"
    f"|[{_SPACELESS}]\u200b.|.\u200b[{_SPACELESS}]"
    "|[\u1820-\u18aa]\u180e[\u1820-\u18aa]"
    "|[\u1100-\u115e\ua960-\ua97c]\u1160.|.\u115f[\u1161-\u11a7\ud7b0-\ud7c6]",
    re.DOTALL,
)
_STACKED: Final = re.compile(f"[{_STACKING}][\u200c\u200d].", re.DOTALL)
_ORDERED: Final = re.compile("[\u0590-\u08ff]\u034f[\u0590-\u08ff]")
DIRECTION: Final = re.compile("[\u200e\u200f\u061c]")
"""Marks of direction. A text without right-to-left letters needs none."""
_VIRAMA: Final = 9
"""The combining class of signs that make two letters one."""

_FLAGS: Final = re.compile(
    "|".join(
        "".join(chr(0xE0000 + ord(letter)) for letter in flag) + "\U000e007f" for flag in ("gbeng", "gbsct", "gbwls")
    )
)
"""The tags that turn a black flag into England's, Scotland's or Wales's. Unicode has no other such flags."""

_GAP: Final = re.compile(f"([^{_INVISIBLE}])?([{_INVISIBLE}]+)(?=([^{_INVISIBLE}])?)", re.DOTALL)
_INVISIBLE_ONE: Final = re.compile(f"[{_INVISIBLE}]")
RIGHT_TO_LEFT_LETTER: Final = re.compile(f"[{_RIGHT_TO_LEFT}]")


def is_invisible(character: str) -> bool:
    return _INVISIBLE_ONE.match(character) is not None


def remove_invisible(text: str, *, both_ways: bool | None = None) -> str:
    """Return the text without the invisible characters that its script does not need.

    For a part of a text, `both_ways` says if the whole has a right-to-left letter.
    """
    if text.isascii() or not _INVISIBLE_ONE.search(text):
        return text
    if both_ways is None:
        both_ways = RIGHT_TO_LEFT_LETTER.search(text) is not None
    return _GAP.sub(partial(_replace_gap, both_ways), text)


def _replace_gap(both_ways: bool, gap: re.Match[str]) -> str:
    """Return the visible character before the gap, and the invisible ones in it that are needed."""
    before, hidden, after = gap[1] or "", gap[2], gap[3] or " "
    tags = _FLAGS.match(hidden) if before == "\U0001f3f4" else None
    flag = tags[0] if tags else ""
    return before + flag + _keep_needed(before or " ", hidden.removeprefix(flag), after, both_ways)


def _keep_needed(before: str, hidden: str, after: str, both_ways: bool) -> str:
    """Return the invisible characters that a script needs between two: one of each kind, in the order of _KINDS."""
    kinds = _KINDS if both_ways else _KINDS[:-1]
    kept = ""
    for character in hidden:
        found = [index for index, is_needed in enumerate(kinds) if is_needed(before, character, after)]
        if found:
            kept += character
            kinds = kinds[found[0] + 1 :]
    return kept


def _selects(before: str, selector: str, after: str) -> bool:
    return _SELECTED.fullmatch(before + selector + after) is not None


def _joins(before: str, joiner: str, after: str) -> bool:
    joined = before + joiner + after
    if _STACKED.fullmatch(joined):
        return combining(before) == _VIRAMA or category(after).startswith("M")
    if _ORDERED.fullmatch(joined):
        return combining(before) > 0 and combining(after) > 0
    return _JOINED.fullmatch(joined) is not None


def _directs(before: str, mark: str, after: str) -> bool:
    """Return whether a mark of direction can change the order. Two letters have an order of their own."""
    return DIRECTION.match(mark) is not None and not (_is_letter(before) and _is_letter(after))


def _is_letter(character: str) -> bool:
    return category(character)[0] in "LM"


_KINDS: Final[tuple[Callable[[str, str, str], bool], ...]] = (_selects, _joins, _directs)
