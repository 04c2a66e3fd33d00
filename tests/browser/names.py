"""Name what the tests and the server that they start have in common."""

from typing import Final

PERSON: Final = "person"
"""The cookie with the id of the person whose development token the page gets."""

HURRIED: Final = "hurried-"
"""The beginning of the id of a person whose requests have little time, for a test of a turn that runs out of it."""

AUTH: Final = "AUTH"
"""The variable with the address of Better Auth, for a page whose people sign in. A path is at the page's own origin."""
