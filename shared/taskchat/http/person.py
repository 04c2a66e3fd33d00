"""Give a route the person whose token it is. On a route of their own data, also a transaction within their limits."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Path, Request, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from sqlmodel import Session

from taskchat import deadline
from taskchat.errors import Forbidden, NotFound, OutOfTime
from taskchat.http.auth import USER_ID, read_bearer_token

USER_ID_SCHEMA: Final = {"pattern": f"^{USER_ID.pattern}$"}
"""Only a description, which FastAPI does not check. The token is verified first. Then a path that no user id fits gets
404, and a path with the id of another user 403."""


class BearerToken(SecurityBase):
    """Reads the token of a request, and describes the header."""

    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="JWT", description="A token of the Better Auth server.")
        self.scheme_name = "bearer"

    async def __call__(self, request: Request) -> str:
        """Return the token before it is verified. Raises Unauthenticated."""
        return read_bearer_token(request.headers.getlist("authorization"))


@dataclass(frozen=True)
class Person:
    """The caller of a route, who is the user in its path."""

    user_id: str
    process: Any
    """The process that serves the request: its `database`, and its `data_limits`."""

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open one transaction that sees the person's rows only, and take one request from their limits in it.

        Raises OutOfTime, DatabaseUnavailable, or TooManyRequests before it commits.
        """
        if deadline.remaining() <= 0:
            raise OutOfTime
        with self.process.database.transaction(self.user_id) as session:
            self.process.data_limits.spend(session, self.user_id)
            yield session


async def _identify(
    user_id: Annotated[str, Path(description="The user: the token's subject.", json_schema_extra=USER_ID_SCHEMA)],
    token: Annotated[str, Security(BearerToken())],
    request: Request,
) -> Person:
    """Return the caller. Raises Unauthenticated, KeySetUnavailable, NotFound for an odd path, or Forbidden.

    It runs in the event loop: to hand each request to a thread and back costs more than to check its token.
    """
    process = request.app.state.process
    claims = process.verifier.verify(token)
    if not USER_ID.fullmatch(user_id):
        raise NotFound
    if claims["sub"] != user_id:
        raise Forbidden
    return Person(user_id, process)


Caller = Annotated[Person, Depends(_identify)]
"""The type of a route's parameter that is the caller."""
