"""Name what the tests and the server that they start have in common."""

from typing import Final

PERSON: Final = "person"
"""The cookie with the id of the person whose development token the page gets."""

TURN_SECONDS: Final = "TURN_SECONDS"
"""The variable with the time that a request has, for a test of a turn that runs out of it."""
