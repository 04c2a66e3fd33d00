"""Act as the developer's browser: follow the address that an MCP client opens, sign in, and agree.

Programs start it instead of a browser if `BROWSER` holds `COMMAND`.
"""

import re
import sys
from typing import Final, Literal

import httpx2

COMMAND: Final = f"{sys.executable} -m dev.authorization.browser"
SECONDS: Final = 60
MOST_PAGES: Final = 5

Form = dict[str, str]


class UnexpectedPageError(Exception):
    """Raised for a page that is neither of the two, or lacks a button."""


def visit(url: str, newcomer: tuple[str, str] | None = None, answer: Literal["allow", "deny"] = "allow") -> str:
    """Go from the client's address to its callback, and return the callback's text. Raises UnexpectedPageError.

    `newcomer` is the email address and the password of a person who signs up. Without it, the developer signs in.
    """
    with httpx2.Client(follow_redirects=True, timeout=SECONDS, trust_env=False) as browser:
        page = browser.get(url, headers={"Accept": "text/html"})
        for _ in range(MOST_PAGES):
            if page.url.path not in ("/sign-in", "/consent"):
                page.raise_for_status()
                return page.text
            page = browser.post(page.url, data=_pressed(page, newcomer, answer), headers={"Accept": "text/html"})
    raise UnexpectedPageError(f"{page.url.path} comes again and again: {page.text}")


def _pressed(page: httpx2.Response, newcomer: tuple[str, str] | None, answer: str) -> Form:
    """Return what the form sends. Raises UnexpectedPageError if the page has no such button."""
    form = {"answer": answer} if page.url.path == "/consent" else {"as": "new" if newcomer else "developer"}
    [(name, value)] = form.items()
    if page.is_error or not re.search(rf'<button name="{name}" value="{value}">', page.text):
        raise UnexpectedPageError(page.text)
    return form | ({"email": newcomer[0], "password": newcomer[1]} if form.get("as") == "new" and newcomer else {})


if __name__ == "__main__":
    visit(sys.argv[1])
