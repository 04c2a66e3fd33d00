"""Clean the text of a model, whole or as it comes: what is shown of a part is the beginning of the whole."""

import re
from typing import Final

from chat.answers import encodable_text
from taskchat.errors import ModelFailed
from taskchat.invisible import DIRECTION, RIGHT_TO_LEFT_LETTER, is_invisible, remove_invisible
from taskchat.text import make_storable

MAX_REPLY: Final = 20_000
"""Characters of a reply: more than a person reads, and far below the 6 MB that Lambda can return."""

_MAX_CLEANED: Final = 2 * MAX_REPLY
"""Characters of a reply that are cleaned of invisible ones: to clean a megabyte takes a second."""

_HIGH_SURROGATE: Final = re.compile("[\ud800-\udbff]\\Z")


def readable(text: str) -> str:
    """Return the text as Postgres can hold it, without invisible characters. Raises ModelFailed if nothing is left."""
    if cleaned := _clean(text):
        return cleaned
    raise ModelFailed("The model answered nothing.")


def _clean(text: str) -> str:
    return remove_invisible(str(make_storable(text[:_MAX_CLEANED]))).strip()[:MAX_REPLY]


class ReplyText:
    """Cleans a text that comes in pieces. What it has returned is always the beginning of the cleaned whole.

    It keeps back what a later piece decides: blanks, invisible characters and half a character at the end.
    """

    def __init__(self) -> None:
        self.shown = ""
        self._pieces: list[str] = []
        self._pending = ""
        self._half = ""
        self._before = ""
        self._length = 0
        self._is_both_ways = False

    def add(self, piece: str) -> str:
        """Add a piece, and return what can be shown now."""
        piece = self._whole_characters(piece)[: _MAX_CLEANED - self._length]
        self._length += len(piece)
        self._pieces.append(piece)
        self._is_both_ways = self._is_both_ways or RIGHT_TO_LEFT_LETTER.search(piece) is not None
        end = _end_of_visible(piece)
        if not end:
            self._pending += piece
            return ""
        ready, self._pending = self._pending + piece[:end], piece[end:]
        return self._show(self._hold_back(ready))

    def end(self) -> str:
        """Return the rest."""
        whole = _clean("".join(self._pieces) + encodable_text(self._half))
        rest = whole[len(self.shown) :]
        self.shown = whole
        return rest

    def _whole_characters(self, piece: str) -> str:
        """Return the piece without half a character at its end, which the next piece gets."""
        piece = self._half + piece
        half = _HIGH_SURROGATE.search(piece)
        self._half = half[0] if half else ""
        return str(make_storable(encodable_text(piece.removesuffix(self._half))))

    def _hold_back(self, ready: str) -> str:
        """Return the text up to a mark of direction, while a later letter can still decide if the mark is needed."""
        mark = None if self._is_both_ways else DIRECTION.search(ready)
        if mark is None:
            return ready
        end = _end_of_visible(ready[: mark.start()])
        self._pending = ready[end:] + self._pending
        return ready[:end]

    def _show(self, ready: str) -> str:
        text = remove_invisible(self._before + ready, both_ways=self._is_both_ways).removeprefix(self._before)
        self._before = ready[-1:] or self._before
        if not self.shown:
            text = text.lstrip()
        text = text[: MAX_REPLY - len(self.shown)]
        self.shown += text
        return text


def _end_of_visible(text: str) -> int:
    """Return the place behind the last character that is seen, or 0."""
    end = len(text)
    while end and (text[end - 1].isspace() or is_invisible(text[end - 1])):
        end -= 1
    return end
