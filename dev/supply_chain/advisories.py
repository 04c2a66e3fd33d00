"""Find known vulnerabilities and withdrawn releases among the locked packages.

A mirror of an index often has no advisories, and a scan that gets no data must not look like one that finds nothing. So
each source is first asked about a release that is known to be bad.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from dev import node, state

LOCKS: Final = (
    "shared/requirements.txt",
    "requirements-dev.txt",
    "requirements-sam.txt",
    "requirements-audit.txt",
    "requirements-clients.txt",
    "requirements-template.txt",
    "requirements-uv.txt",
)
NPM: Final = (
    "dev/better_auth",
    "dev/chromium",
    "dev/clients",
    "dev/conformance",
    "dev/examples/tools",
    "dev/mcp_remote",
    "examples/assistant-ui",
    "examples/typescript",
    "examples/usechat",
    "page/vendor",
)
"""The directories with a package-lock.json."""
SERVICES: Final = ("pypi", "osv")
VULNERABLE: Final = "jinja2==2.10"
"""Has had advisories since 2019."""
WITHDRAWN: Final = "attrs==21.1.0"
LIMIT_SECONDS: Final = 300


class AuditError(Exception):
    """Raised when a tool of the audit fails, or a source knows only some of the packages."""


@dataclass(frozen=True)
class Finding:
    """Hold an advisory about a locked package."""

    where: str
    package: str
    advisory: str

    def __str__(self) -> str:
        return f"{self.where}: {self.package} has {self.advisory}"


@dataclass(frozen=True)
class Accepted:
    """An advisory that does not fail the audit up to a date."""

    id: str
    reason: str
    until: date


@dataclass(frozen=True)
class Report:
    """A source's answer about some packages."""

    known: int
    unknown: tuple[str, ...]
    findings: tuple[Finding, ...]


def unaccepted(findings: tuple[Finding, ...], accepted: list[Accepted], today: date) -> list[Finding]:
    """Return the findings that are not accepted, or were accepted up to an earlier date."""
    good = {each.id for each in accepted if today <= each.until}
    return [finding for finding in findings if finding.advisory not in good]


@dataclass(frozen=True)
class PipAudit:
    """The program, and the service that it asks. `url` names another OSV service than the public one."""

    program: Path
    service: str
    url: str | None = None

    def works(self) -> bool:
        """Return whether the service answers, and knows a vulnerability that is well known."""
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(VULNERABLE)
            file.flush()
            try:
                return bool(self.ask(Path(file.name), "--no-deps").findings)
            except AuditError:
                return False

    def audit(self, lock: str) -> Report:
        """Ask about all packages of a lock. Raises AuditError when the service does not know every one of them."""
        report = self.ask(state.ROOT / lock, "--require-hashes")
        if report.unknown:
            raise AuditError(f"{self.service} does not know {', '.join(report.unknown)} of {lock}")
        return report

    def ask(self, requirements: Path, *options: str) -> Report:
        """Return the service's report. Raises AuditError when pip-audit prints none."""
        command: list[str | Path] = [self.program, "--requirement", requirements, "--disable-pip", *options]
        command += ["--vulnerability-service", self.service, *(("--osv-url", self.url) if self.url else ())]
        done = _run(*command, "--format", "json", "--progress-spinner", "off")
        try:
            packages = json.loads(done.stdout)["dependencies"]
        except ValueError as error:
            raise AuditError(f"pip-audit: {(done.stderr.strip().splitlines() or ['no output'])[-1]}") from error
        return _report(requirements.name, packages)


def _report(where: str, packages: list[dict[str, Any]]) -> Report:
    unknown = tuple(each["name"] for each in packages if "skip_reason" in each)
    findings = tuple(
        Finding(where, f"{each['name']} {each['version']}", vulnerability["id"])
        for each in packages
        for vulnerability in each.get("vulns", ())
    )
    return Report(len(packages) - len(unknown), unknown, findings)


def npm_audit(directory: str) -> tuple[Finding, ...] | None:
    """Return the advisories about the packages that npm installs, or None when npm's service does not answer."""
    done = _npm("audit", "--json", "--package-lock-only", "--prefix", str(state.ROOT / directory))
    report = json.loads(done.stdout or "{}")
    if "auditReportVersion" not in report:
        return None
    return tuple(
        Finding(f"{directory}/package-lock.json", package, f"{found['severity']} advisories")
        for package, found in report["vulnerabilities"].items()
    )


def withdrawn(lock: Path) -> list[str]:
    """Return the index's lines on withdrawn (yanked) releases. Raises AuditError unless all are pinned and hashed."""
    with tempfile.TemporaryDirectory() as target:
        done = _uv("--require-hashes", "--requirement", str(lock), "--target", target)
    if done.returncode != 0:
        raise AuditError(f"{lock}: {done.stderr.strip()}")
    return [line for line in done.stderr.splitlines() if "yanked" in line]


def reports_withdrawn() -> bool:
    """Return whether the index reports a release that is known to be withdrawn."""
    with tempfile.TemporaryDirectory() as target:
        return "yanked" in _uv(WITHDRAWN, "--target", target).stderr


def _uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    uv = Path(sys.executable).with_name("uv")
    return _run(uv, "pip", "install", "--dry-run", "--no-deps", "--python", sys.executable, *arguments)


def _npm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return node.run(["npm", *arguments], LIMIT_SECONDS)


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
