"""Run the public MCP suite, released and upcoming, against the MCP endpoint on a real Postgres (`make conformance`)."""

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dev import node, processes, proof, state
from dev.conformance import issuer, scenarios
from dev.conformance.scenarios import WAIVED, Endpoint, Result, Verdict
from dev.processes import StartupError
from dev.proof import ProofError

HOST: Final = "127.0.0.1"
LIMIT_SECONDS: Final = 300
PATHS: Final[dict[Endpoint, str]] = {"own": "/mcp", "fixtures": "/fixtures/mcp"}
RUNS: Final = (("released", "2025-11-25"), ("upcoming", "2025-11-25"), ("upcoming", "2026-07-28"))
"""The suite's packages by their names in package.json, and the protocol version each is run for."""
WRONG: Final = ("FAILURE", "WARNING")
BUCKET: Final = {"MCP_BURST": "100000", "MCP_REQUESTS_PER_MINUTE": "100000"}
"""The rate limits are on, but so high that the hundreds of requests of this one user stay below them."""
LONGEST_FAULT: Final = 300
"""Characters that are printed: the suite quotes whole answers, and its result files hold them in full."""


@dataclass(frozen=True)
class Suite:
    """One package of the suite, where npm has installed it."""

    home: Path
    package: str

    def scenarios(self) -> dict[str, list[str]]:
        """Return all server scenarios by name, with the protocol versions (or `extension`) that they belong to."""
        listed = re.findall(r"^  - (\S+) \[(.*)\]$", self._run("list", "--server"), re.MULTILINE)
        if not listed:
            raise ProofError(f"{self.package}: the suite lists no scenarios")
        return {name: versions.split(",") for name, versions in listed}

    def results(self, url: str, version: str, directory: Path) -> dict[str, Result]:
        """Run every scenario of the protocol version against the URL, and return the results by name."""
        self._run(
            *("server", "--url", url, "--suite", "all", "--spec-version", version, "--output-dir", str(directory))
        )
        found = map(_result, sorted(directory.glob("*/checks.json")))
        return {result.scenario: result for result in found}

    def _run(self, *arguments: str) -> str:
        """Return the program's output. Its exit code is not needed: the results show what failed."""
        index = self.home / "node_modules" / self.package / "dist" / "index.js"
        done = node.run([node.program(), index, *arguments], LIMIT_SECONDS)
        return done.stdout


def _result(path: Path) -> Result:
    """Read one scenario's result from the file that the suite writes."""
    name = re.sub(r"^server-(.*)-\d{4}-\d\d-\d\dT[\dZ-]+$", r"\1", path.parent.name)
    checks = [each for each in json.loads(path.read_text()) if not _is_waived(each)]
    statuses = [check["status"] for check in checks]
    faults = (check.get("errorMessage") or check["description"] for check in checks if check["status"] in WRONG)
    return Result(name, statuses.count("SUCCESS"), tuple(faults))


def _is_waived(check: dict[str, Any]) -> bool:
    return check["status"] == "WARNING" and check["id"] in WAIVED


def main() -> int:
    """Run the suites and print the counts. The exit code is 1 when a scenario that applies did not pass."""
    print("Running the MCP conformance suites (the first run downloads them)", flush=True)
    try:
        return run(node.install(Path(__file__).parent))
    except (ProofError, StartupError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1


def run(home: Path) -> int:
    """Run every scenario at both endpoints. The exit code is 1 when one failed. Raises ProofError and StartupError."""
    log = home / "server.log"
    with _endpoints(log) as url:
        verdicts = [_try(Suite(home, package), version, url) for package, version in RUNS]
    _print_reasons(verdicts)
    _check_names(Suite(home, package) for package, _ in RUNS)
    _check_log(log)
    return int(any(verdict.failed for verdict in verdicts))


def _try(suite: Suite, version: str, url: str) -> Verdict:
    """Run the suite's scenarios of the protocol version at both endpoints, and print the counts."""
    belongs = {version, "extension"}
    names = [name for name, versions in suite.scenarios().items() if belongs & set(versions)]
    results = {
        endpoint: suite.results(url + path, version, suite.home / "results" / f"{suite.package}-{version}-{endpoint}")
        for endpoint, path in PATHS.items()
    }
    verdict = scenarios.judge(version, names, results)
    passed = f"{len(verdict.passed)} scenarios passed ({sum(result.successes for result in verdict.passed)} checks)"
    rest = f"{len(verdict.not_applicable)} not applicable, {len(verdict.failed)} failed"
    print(f"{suite.package} suite, protocol {version}: {passed}, {rest}", flush=True)
    for line in verdict.failed:
        print(f"  FAILED {line[:LONGEST_FAULT]}", flush=True)
    return verdict


def _print_reasons(verdicts: Sequence[Verdict]) -> None:
    reasons = {pair for verdict in verdicts for pair in verdict.not_applicable}
    print(f"Checks whose warning is accepted: {'; '.join(f'{name} ({why})' for name, why in WAIVED.items())}")
    print("Scenarios that do not apply, by reason:")
    for why in sorted({why for _, why in reasons}):
        print(f"  {why}: {', '.join(sorted(name for name, its in reasons if its == why))}")


def _check_names(suites: Iterable[Suite]) -> None:
    """Raise ProofError when scenarios.py names a scenario that no suite has."""
    known = {name for suite in suites for name in suite.scenarios()}
    if stale := scenarios.NAMES - known:
        raise ProofError(f"no suite has {', '.join(sorted(stale))} any more: remove it from scenarios.py")


def _check_log(log: Path) -> None:
    """Raise ProofError when the server logged a warning or an error, even if the suite accepted its answers."""
    lines = log.read_text().splitlines()
    if wrong := [line for line in lines if not _is_info(line)]:
        raise ProofError(f"the server logged {len(wrong)} warnings or errors, the first: {wrong[0]}")


def _is_info(line: str) -> bool:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return bool(json.loads(line)["level"] == "INFO")
    return False


@contextlib.contextmanager
def _endpoints(log: Path) -> Iterator[str]:
    """Serve both endpoints at one address, on a database of their own, and yield its URL. Raises StartupError."""
    port = processes.free_port(HOST)
    url = f"http://{HOST}:{port}"
    with proof.surroundings("conformance") as around, log.open("wb") as output:
        known = {"AUTH_ISSUER": url, "AUTH_JWKS_JSON": issuer().jwks_json, "MCP_RESOURCE_URL": url + PATHS["own"]}
        names = {"POWERTOOLS_SERVICE_NAME": "taskchat", "POWERTOOLS_METRICS_NAMESPACE": "taskchat"}
        command = [sys.executable, "-m", "uvicorn", "dev.conformance.app:app", "--host", HOST, "--port", str(port)]
        process = processes.spawn(
            [*command, "--log-level", "warning"],
            output=output,
            cwd=state.ROOT,
            env=os.environ | around.environment | known | names | BUCKET,
        )
        try:
            processes.wait_until_listening(process, HOST, port)
            yield url
        finally:
            processes.stop(process, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
