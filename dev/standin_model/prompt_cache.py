"""Count the tokens of a prompt, and those that a provider's prompt cache would know already.

A token is four characters. The prompt is the JSON of its pieces in the order tools, instructions, input. Every
whole token counts: the real minimum of 1,024 tokens and steps of 128 would hide the prefixes of small conversations.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from .conversation import dump

CHARACTERS_PER_TOKEN = 4
REMEMBERED = 200  # earlier prompts; enough for a test run or a developer, and bounded


def count(text: str) -> int:
    """Return the number of tokens in a text."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


class PromptCache:
    """Holds the latest prompts, and compares them by their text alone."""

    def __init__(self) -> None:
        self._prompts: deque[str] = deque(maxlen=REMEMBERED)

    def tokens(self, pieces: Iterable[Any]) -> tuple[int, int]:
        """Return how many tokens the prompt has, and how many leading ones it shares with an earlier prompt."""
        prompt = "\n".join(map(dump, pieces))
        cached = self._repeated(prompt) // CHARACTERS_PER_TOKEN
        self._prompts.append(prompt)
        return count(prompt), cached

    def _repeated(self, prompt: str) -> int:
        best = 0
        for earlier in reversed(self._prompts):
            if best < len(prompt) and earlier.startswith(prompt[: best + 1]):
                best = _common_prefix(earlier, prompt)
        return best


def _common_prefix(one: str, other: str) -> int:
    """Return the length of the common prefix. It halves the range: slices compare faster than a loop does."""
    same, end = 0, min(len(one), len(other))
    while same < end:
        middle = (same + end + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same
