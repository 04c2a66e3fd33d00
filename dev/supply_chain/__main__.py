"""Find secrets in the tree and its history, withdrawn releases and known vulnerabilities (`make audit`)."""

import argparse
import sys
import tomllib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from dev import state
from dev.supply_chain import advisories, secrets
from dev.supply_chain.advisories import LOCKS, NPM, SERVICES, Accepted, AuditError, Finding, PipAudit
from dev.supply_chain.secrets import Line

EXCEPTIONS: Final = Path(__file__).with_name("exceptions.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the whole audit, or look for secrets in the tree alone. The exit code is 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pip_audit", type=Path, nargs="?", help="path of pip-audit; without it only the tree is read")
    program: Path | None = parser.parse_args(arguments).pip_audit
    known = tomllib.loads(EXCEPTIONS.read_text())
    try:
        failures = audit_secrets(known, history=program is not None)
        if program is not None:
            failures += audit_releases()
            failures += audit_advisories(program.absolute(), known)
    except AuditError as error:
        failures = [str(error)]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return int(bool(failures))


def audit_secrets(known: dict[str, Any], *, history: bool) -> list[str]:
    """Return the secrets that are not among the exceptions, as lines to print."""
    lines = set(secrets.tree(state.ROOT)) | (set(secrets.history(state.ROOT)) if history else set())
    failures = unexpected(lines, known)
    print(f"secrets: {len(lines)} lines of the tree{' and of all commits' if history else ''}, {len(failures)} found")
    return failures


def unexpected(lines: Iterable[Line], known: dict[str, Any]) -> list[str]:
    """Return a line for each secret, without most of it: more people read this output than may know the secret."""
    harmless = {value for each in known["secret"] for value in each["values"]}
    return [
        f"{', '.join(sorted(where))} holds what looks like a secret: {value[:3]}…"
        for value, where in sorted(secrets.find(lines).items())
        if value not in harmless
    ]


def audit_releases() -> list[str]:
    """Return the locked releases that were withdrawn, as lines to print."""
    found = [line for lock in LOCKS for line in advisories.withdrawn(state.ROOT / lock)]
    print(f"releases: {len(LOCKS)} locks, every release pinned and hashed, {len(found)} withdrawn")
    if not advisories.reports_withdrawn():
        _warn("the package index does not report which releases were withdrawn")
    return found


def audit_advisories(program: Path, known: dict[str, Any]) -> list[str]:
    """Return the advisories that are not among the exceptions, as lines to print."""
    accepted = [Accepted(**each) for each in known.get("advisory", ())]
    found = [*_of_locks(program), *_of_npm()]
    return list(map(str, advisories.unaccepted(tuple(found), accepted, datetime.now(UTC).date())))


def _of_locks(program: Path) -> Iterable[Finding]:
    services = (PipAudit(program, service) for service in SERVICES)
    service = next((each for each in services if each.works()), None)
    if service is None:
        _warn(f"NO PYTHON PACKAGE WAS AUDITED: neither {' nor '.join(SERVICES)} answers with advisories from here")
        return
    for lock in LOCKS:
        report = service.audit(lock)
        print(f"advisories: {report.known} packages of {lock} audited by {service.service}")
        yield from report.findings


def _of_npm() -> Iterable[Finding]:
    for directory in NPM:
        findings = advisories.npm_audit(directory)
        if findings is None:
            _warn(f"NO NPM PACKAGE of {directory} WAS AUDITED: npm's service does not answer with advisories from here")
            continue
        print(f"advisories: the packages of {directory}/package-lock.json audited by npm")
        yield from findings


def _warn(text: str) -> None:
    print(f"WARNING: {text}.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
