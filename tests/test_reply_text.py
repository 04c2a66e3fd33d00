"""A reply that is shown as it comes is, at every moment, the beginning of the reply that is stored."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.answers import encodable_text
from chat.reply_text import MAX_REPLY, ReplyText, readable
from taskchat.errors import ModelFailed

ODD = " \n\t\u00a0\u200d\u200e\u200f\u061c\u200b\ufe0f\u00ad\u0301\U0001f3f4\U000e0067\U000e007f\ud83d\ude00\x00éaZ1"
LETTERS = st.sampled_from([*ODD, "שלום", "👩", "❤", "नि", "क्ष", "می", "\u200c", "中"]) | st.characters()
TEXTS = st.lists(LETTERS, max_size=60).map("".join)


def shown_in_pieces(text: str, cuts: list[int]) -> tuple[list[str], ReplyText]:
    """Return what is shown when the text comes in pieces that end at these places."""
    reply, places = ReplyText(), sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [reply.add(text[start:end]) for start, end in pairwise(places)], reply


@given(TEXTS, st.lists(st.integers(0, 60), max_size=60))
def test_pieces_make_the_reply(text: str, cuts: list[int]) -> None:
    """Whatever it holds and wherever it is cut: half characters, marks, joiners, flags, blanks."""
    shown, reply = shown_in_pieces(text, cuts)
    try:
        whole = readable(encodable_text(text))
    except ModelFailed:
        whole = ""
    assert whole.startswith("".join(shown))
    assert "".join(shown) + reply.end() == whole == reply.shown


def test_a_word_is_shown_at_once() -> None:
    """The next word need not come first."""
    reply = ReplyText()
    assert [reply.add(piece) for piece in ("  I", " am", " ", "here", ".\n")] == ["I", " am", "", " here", "."]


@pytest.mark.parametrize("piece", ["a", "a ", " a", "é\u200d", "😀"])
def test_a_long_reply_ends_at_its_limit(piece: str) -> None:
    """It is shown as far as it is stored."""
    reply, text = ReplyText(), ""
    for _ in range(2 * MAX_REPLY):
        text += reply.add(piece)
    text += reply.end()
    assert text == readable(piece * 2 * MAX_REPLY)
    assert len(text) <= MAX_REPLY
