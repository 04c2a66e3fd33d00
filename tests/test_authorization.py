"""In development, an MCP client without a token finds an authorization server, as it would in production."""

import asyncio
import base64
import hashlib
import json
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import psutil
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dev import better_auth, client, mcp_remote, node, proof
from dev.authorization import browser
from dev.authorization.routes import Routes
from dev.authorization.server import AuthorizationServer
from dev.inspector import Inspector
from dev.processes import StartupError
from dev.standin_model.domain import domain
from dev.tokens import Issuer
from tests.conftest import ROOT, run, serving
from tests.test_dev import GONE_SECONDS, Development, development

if TYPE_CHECKING:
    from tests.privacy import LogSearch

METADATA = "/.well-known/oauth-authorization-server"
NO_REGISTRY = "http://127.0.0.1:9"
ADD, LIST = domain.examples.tools[:2]


@pytest.fixture(scope="module")
def server(log_search: "LogSearch") -> Iterator[Development]:
    """Run one `make dev` that has been offline since npm installed its packages."""
    node.install(better_auth.HERE)
    node.install(mcp_remote.HERE)
    with (
        tempfile.TemporaryDirectory(prefix="taskchat-test-") as name,
        development(Path(name), npm_config_registry=NO_REGISTRY) as running,
    ):
        yield running
        log_search.add_output((Path(name) / "server.log").read_text())


@pytest.fixture
def directory(server: Development, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep the files of the clients out of the checkout."""
    monkeypatch.setenv("TASKCHAT_DEV_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def callback() -> Iterator[str]:
    """Run the address to which a client's user comes back. It shows the parameters."""

    async def show(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.url.query)

    with serving(Starlette(routes=[Route("/callback", show)])) as address:
        yield f"{address}/callback"


def call(server: Development, token: str, tool: str, **arguments: object) -> tuple[int, Any]:
    """Call a tool over HTTP, and return the status and the answer."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    headers = {"Accept": "application/json, text/event-stream", "Authorization": f"Bearer {token}"}
    return client.call(server.url, "/mcp", message, headers)


def of_developer(server: Development) -> str:
    """Return the result of the list tool, for the person of the page."""
    _, answer = call(server, client.token(server.url)["mcp_token"], LIST)
    return json.dumps(answer["result"]["structuredContent"])


def test_the_endpoint_leads_a_client_to_the_authorization_server(server: Development) -> None:
    """All addresses are of one origin, and the server answers with the metadata that clients need."""
    refused = httpx2.post(f"{server.url}/mcp", json={}, trust_env=False)
    [address] = [
        part.split('"')[1]
        for part in refused.headers["www-authenticate"].split()
        if part.startswith("resource_metadata=")
    ]
    resource = httpx2.get(address, trust_env=False).json()
    metadata = httpx2.get(resource["authorization_servers"][0] + METADATA, timeout=60, trust_env=False).json()
    assert (resource["resource"], resource["authorization_servers"]) == (f"{server.url}/mcp", [server.url])
    assert (metadata["issuer"], metadata["code_challenge_methods_supported"]) == (server.url, ["S256"])
    assert all(
        metadata[f"{name}_endpoint"].startswith(server.url) for name in ("registration", "token", "authorization")
    )
    assert httpx2.get(metadata["jwks_uri"], trust_env=False).status_code == 200


def test_the_documented_command_has_this_version() -> None:
    """docs/auth.md shows the version that is tested."""
    versions = json.loads((mcp_remote.HERE / "package.json").read_text())["dependencies"]
    assert f"npx -y mcp-remote@{versions['mcp-remote']} " in (ROOT / "docs" / "auth.md").read_text()


def test_mcp_remote_signs_in(server: Development, directory: Path) -> None:
    """It registers, the developer agrees in a browser, and the page shows the effect of its call."""
    listed, added = mcp_remote.list_and_call(f"{server.url}/mcp", ADD, {domain.examples.text: "through mcp-remote"})
    assert set(listed) == set(proof.TOOLS)
    assert added[domain.examples.text] == "through mcp-remote"
    assert "through mcp-remote" in of_developer(server)


def test_the_inspector_signs_in(server: Development, directory: Path) -> None:
    """It is the version of README's command."""
    inspector, text = Inspector(server.url), f"{domain.examples.text}=through the Inspector"
    listed = inspector.sign_in("--method", "tools/list")["tools"]
    assert {tool["name"] for tool in listed} == set(proof.TOOLS)
    inspector.sign_in("--method", "tools/call", "--tool-name", ADD, "--tool-arg", text)
    assert "through the Inspector" in of_developer(server)


def test_the_development_tokens_stay_valid(server: Development) -> None:
    """Their key is another one than Better Auth's. A token of an unknown key is wrong, and not to be tried again."""
    assert httpx2.get(server.url + METADATA, timeout=60, trust_env=False).status_code == 200
    identity = client.token(server.url)
    headers = {"Authorization": f"Bearer {identity['token']}"}
    assert client.call(server.url, f"/api/{identity['user_id']}/tasks", headers=headers)[0] == 200
    assert call(server, identity["mcp_token"], LIST)[0] == 200
    stranger = Issuer.new().mint_for_mcp(identity["user_id"], issuer=server.url, resource=f"{server.url}/mcp")
    assert call(server, stranger, LIST)[0] == 401


class OAuthClient:
    """Registers itself, and sends its user to the authorization server."""

    def __init__(self, server: Development, callback: str) -> None:
        self._url, self._callback, self._verifier = f"{server.url}/api/auth/oauth2", callback, secrets.token_urlsafe(48)
        metadata = {
            "client_name": "<b>test</b>",
            "redirect_uris": [callback],
            "application_type": "native",
            "token_endpoint_auth_method": "none",
        }
        registered = httpx2.post(f"{self._url}/register", json=metadata, timeout=60, trust_env=False)
        assert registered.status_code == 201, registered.text
        self._known = {"client_id": registered.json()["client_id"], "redirect_uri": callback}
        self._resource = f"{server.url}/mcp"

    @property
    def address(self) -> str:
        """Return the address that the client opens in the user's browser."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self._verifier.encode()).digest()).rstrip(b"=").decode()
        scope = " ".join(domain.examples.scopes)
        asked = {"response_type": "code", "scope": scope, "state": "s", "resource": self._resource}
        proof_key = {"code_challenge": challenge, "code_challenge_method": "S256"}
        return f"{self._url}/authorize?{urlencode(self._known | asked | proof_key)}"

    def token(self, came_back_with: str) -> str:
        """Exchange the code for a token."""
        [code] = parse_qs(came_back_with)["code"]
        form = {"grant_type": "authorization_code", "code": code, "code_verifier": self._verifier}
        answer = httpx2.post(
            f"{self._url}/token", data=self._known | form | {"resource": self._resource}, timeout=60, trust_env=False
        )
        token: str = answer.json()["access_token"]
        return token


def test_another_person_signs_up(server: Development, callback: str) -> None:
    """They have their own things, and the developer does not see them."""
    asking = OAuthClient(server, callback)
    token = asking.token(browser.visit(asking.address, ("al@example.com", secrets.token_hex(8))))
    status, answer = call(server, token, ADD, **{domain.examples.text: "of another person"})
    assert (status, answer["result"]["isError"]) == (200, False)
    assert "of another person" in json.dumps(call(server, token, LIST)[1])
    assert "of another person" not in of_developer(server)


def test_a_person_may_refuse(server: Development, callback: str) -> None:
    """The client gets no code."""
    came_back_with = parse_qs(browser.visit(OAuthClient(server, callback).address, answer="deny"))
    assert (came_back_with["error"], "code" in came_back_with) == (["access_denied"], False)


def test_the_pages_load_nothing_and_quote_nothing_as_html(server: Development, callback: str) -> None:
    """The name of a client is any program's text."""
    with httpx2.Client(follow_redirects=True, timeout=60, trust_env=False) as person:
        page = person.get(OAuthClient(server, callback).address)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        consent = person.post(page.url, data={"as": "developer"}, headers={"Accept": "text/html"})
    assert consent.url.path == "/consent"
    assert "&lt;b&gt;test&lt;/b&gt;" in consent.text
    assert urlsplit(callback).netloc in consent.text


def test_a_wrong_password_gets_the_reason(server: Development) -> None:
    """The form comes again."""
    form = {"as": "known", "email": "nobody@example.com", "password": secrets.token_hex(8)}
    answer = httpx2.post(f"{server.url}/sign-in", data=form, timeout=60, trust_env=False)
    assert (answer.status_code, "Invalid email or password" in answer.text) == (400, True)
    assert '<button name="as" value="known">' in answer.text


@pytest.mark.parametrize("path", ["/sign-in", "/consent"])
def test_another_site_cannot_send_the_forms(server: Development, path: str) -> None:
    """Its page would sign the developer in, or agree for them."""
    answer = httpx2.post(
        server.url + path,
        data={"as": "developer", "answer": "allow"},
        headers={"Origin": "https://evil.example"},
        timeout=60,
        trust_env=False,
    )
    assert (answer.status_code, answer.headers.get("set-cookie")) == (403, None)


def test_ctrl_c_ends_better_auth_too(server: Development, tmp_path: Path) -> None:
    """It runs below the development server."""
    with development(tmp_path) as running:
        assert httpx2.get(running.url + METADATA, timeout=60, trust_env=False).status_code == 200
        everything = [psutil.Process(running.make.pid), *psutil.Process(running.make.pid).children(recursive=True)]
        assert any("dev.better_auth" in process.cmdline() for process in everything)
        assert any("server.mjs" in process.cmdline() for process in everything)
        os.killpg(running.make.pid, signal.SIGINT)
        assert psutil.wait_procs(everything, timeout=GONE_SECONDS)[1] == []


@pytest.fixture
def uninstalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuthorizationServer:
    """Return a server whose packages npm has not installed."""
    monkeypatch.setenv("TASKCHAT_PACKAGES_DIR", str(tmp_path))
    monkeypatch.setenv("npm_config_registry", NO_REGISTRY)
    return AuthorizationServer("http://127.0.0.1:1", "http://127.0.0.1:1/mcp", "postgresql://", Issuer.new)


def test_without_npm_a_client_is_refused_with_the_reason(uninstalled: AuthorizationServer) -> None:
    """The reason is in the members that OAuth clients show, and in the terminal of `make dev`."""

    async def ask() -> httpx2.Response:
        app = Starlette(routes=Routes(uninstalled).all())
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:1") as asking:
            return await asking.get(METADATA)

    answer = run(ask())
    assert answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert answer.json()["detail"].startswith("npm could not install better_auth (is the network there?)")
    assert answer.json()["error_description"] == answer.json()["detail"]


def test_a_stop_ends_a_download(uninstalled: AuthorizationServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry takes the connection and does not answer."""

    async def stop_while_downloading(silent: socket.socket) -> None:
        before = set(psutil.Process().children(recursive=True))
        asking = asyncio.create_task(uninstalled.ask("GET", METADATA, []))
        connection, _ = await asyncio.get_running_loop().sock_accept(silent)
        started = set(psutil.Process().children(recursive=True)) - before
        assert len(started) > 1  # npm runs below the process that we started
        uninstalled.stop()
        with pytest.raises(StartupError):
            await asking
        connection.close()
        assert psutil.wait_procs(started, timeout=GONE_SECONDS)[1] == []

    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{silent.getsockname()[1]}")
        run(stop_while_downloading(silent))
