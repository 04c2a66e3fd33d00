"""Check the name of a time zone against the tzdata package, whose list is the same on every machine."""

from functools import cache
from importlib.resources import files
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints

MAX_NAME: Final = 64


@cache
def _read_names() -> frozenset[str]:
    return frozenset((files("tzdata") / "zones").read_text().split())


def check_timezone(name: str) -> str:
    """Return the name. Raises ValueError for a name that IANA does not list."""
    if name not in _read_names():
        raise ValueError("not an IANA time zone")
    return name


TimezoneName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_+/-]+$", max_length=MAX_NAME),
    AfterValidator(check_timezone),
]
"""The type of a request's field that names a time zone."""
