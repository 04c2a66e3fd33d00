"""Start Better Auth when a request needs it, pass requests on to it, and verify its tokens while it runs."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

import httpx2
import jwt

from dev import processes, state
from dev.processes import StartupError
from dev.tokens import Issuer
from taskchat.errors import Unauthenticated
from taskchat.http.auth import KeySet, Verifier

DEVELOPER_EMAIL: Final = "developer@taskchat.example"
SECONDS: Final = 30
"""Seconds in which Better Auth answers a request."""
OF_ONE_CONNECTION: Final = frozenset(
    {"connection", "content-encoding", "content-length", "host", "keep-alive", "transfer-encoding"}
)
IMPATIENT_NPM: Final = {
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "1000",
    "npm_config_fetch_timeout": "20000",
}
"""A client waits while npm downloads Better Auth: without a network, it is refused after a second or two."""

Headers = Sequence[tuple[str, str]]


class AuthorizationServer:
    """Better Auth as the development server's authorization server, with an account for the developer."""

    def __init__(self, url: str, resource: str, database_url: str, issuer: Callable[[], Issuer]) -> None:
        """Prepare a server that is known as `url` and issues tokens for `resource`. Start nothing.

        `issuer` returns the issuer of the development token, from which the developer's account comes.
        """
        self.url = url
        self.keys: KeySet | None = None
        """Better Auth's keys, once it runs."""
        self._resource, self._database_url, self._issuer = resource, database_url, issuer
        self._starting = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    @cached_property
    def developer(self) -> dict[str, str]:
        """Return the developer's email address and password."""
        return {"email": DEVELOPER_EMAIL, "password": self._issuer().derive("the developer's account")}

    @property
    def _environment(self) -> dict[str, str]:
        issuer = self._issuer()
        return {
            "BETTER_AUTH_URL": self.url,
            "BETTER_AUTH_DATABASE_URL": self._database_url,
            "BETTER_AUTH_SECRET": issuer.derive("Better Auth"),
            "MCP_RESOURCE_URL": self._resource,
            "TASKCHAT_URL": self.url,
            "DEVELOPER_EMAIL": DEVELOPER_EMAIL,
            "DEVELOPER_ID": issuer.developer,
        }

    async def ask(self, method: str, path: str, headers: Headers, body: bytes = b"") -> httpx2.Response:
        """Pass a request to Better Auth, and start it for the first one. Raises StartupError."""
        async with self._starting:
            if self._process is None or self._process.poll() is not None or not self._address:
                await self._start()
        passed_on = [(name, value) for name, value in headers if name.lower() not in OF_ONE_CONNECTION]
        passed_on.append(("host", urlsplit(self.url).netloc))
        try:
            async with httpx2.AsyncClient(timeout=SECONDS, trust_env=False) as client:
                return await client.request(method, self._address + path, headers=passed_on, content=body)
        except httpx2.HTTPError as error:
            raise StartupError(f"Better Auth does not answer ({type(error).__name__}).") from error

    async def _start(self) -> None:
        self.stop()
        self._address = ""
        print("Starting Better Auth for a client without a token (npm downloads it the first time)", flush=True)
        # From the event loop's thread: the kernel ends the process when the thread that started it ends.
        self._process = processes.spawn(
            [sys.executable, "-m", "dev.better_auth"],
            output=subprocess.PIPE,
            cwd=state.ROOT,
            env=os.environ | IMPATIENT_NPM | self._environment,
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for with PIPE
        line = (await asyncio.to_thread(self._process.stdout.readline)).decode().strip()
        if not line.startswith("http://"):
            self.stop()
            print(f"Better Auth could not start: {line or 'it ended at once'}", flush=True)
            raise StartupError(line or "Better Auth ended at once.")
        self._address, self.keys = line, KeySet(f"{line}/api/auth/jwks", None)

    def stop(self) -> None:
        """Stop Better Auth, or the download of it."""
        if self._process is not None and self._process.stdout is not None:
            processes.stop(self._process, signal.SIGTERM)
            self._process.stdout.close()

    def accepted_by(self, verifier: Verifier) -> Verifier:
        """Return the verifier with Better Auth's keys beside its own."""
        return replace(verifier, keys=_BothKeys(verifier.keys, self))


class _BothKeys(KeySet):
    """A key set, and Better Auth's. While Better Auth does not run, an unknown key is wrong, and not unavailable."""

    def __init__(self, own: KeySet, server: AuthorizationServer) -> None:
        super().__init__(None, None)
        self._own, self._server = own, server

    def find(self, key_id: str) -> jwt.PyJWK:
        """Return the key with this id. Raises Unauthenticated or KeySetUnavailable."""
        try:
            return self._own.find(key_id)
        except Unauthenticated:
            if self._server.keys is None:
                raise
            return self._server.keys.find(key_id)
