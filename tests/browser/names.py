"""Name what the tests and the server that they start have in common."""

from typing import Final

PERSON: Final = "person"
"""The cookie with the id of the person whose development token the page gets."""

TURN_SECONDS: Final = "TURN_SECONDS"
"""The variable with the time that a request has, for a test of a turn that runs out of it."""

PANEL: Final = "PANEL"
"""The variable with the path of the domain's module, if it is another; empty for a domain without one."""

AUTH: Final = "AUTH"
"""The variable with the address of Better Auth, for a page whose people sign in."""
