"""Check template.yaml, as written and as transformed, against the rules of cfn-lint, its serverless rules, and checkov.

exceptions.toml holds each finding that stays, with its reason. Any other finding fails the check, and so does an
exception without a finding.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from dev import state
from dev.template_rules.transformed import Resource, template, translate

EXCEPTIONS: Final = Path(__file__).with_name("exceptions.toml")
LEAST_CHECKS: Final = 50
"""Checks of checkov that must pass. Fewer mean that it could not read the files."""
LIMIT_SECONDS: Final = 120

Findings = dict[tuple[str, str], str]
"""The text of each finding, by rule and resource."""


class RulesError(Exception):
    """Raised when a tool gives no result."""


def main(programs: Path) -> int:
    """Run the tools in the directory `programs`. The exit code is 1 if there is a finding without an exception."""
    written, transformed = state.ROOT / "template.yaml", state.ROOT / ".dev" / "template.json"
    transformed.parent.mkdir(exist_ok=True)
    transformed.write_text(json.dumps(_with_page(translate(template())), indent=1))
    files = (written, transformed)
    try:
        found = lint(programs / "cfn-lint", files) | scan(programs / "checkov", files)
    except RulesError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    exceptions = tomllib.loads(EXCEPTIONS.read_text())["exception"]
    failures = judge(found, exceptions)
    print(f"template: {len(found)} findings of public rules, {len(failures)} without a reason")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return int(bool(failures))


def _with_page(document: Resource) -> Resource:
    """Return the template with its page switched on: checkov drops a resource whose condition is false by default."""
    document["Parameters"]["Page"]["Default"] = "enabled"
    return document


def judge(found: Findings, exceptions: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each finding without an exception, and for each exception without a finding."""
    excepted = {(each["rule"], resource) for each in exceptions for resource in each["resources"]}
    new = [f"{rule} {resource}: {found[rule, resource]}" for rule, resource in sorted(found.keys() - excepted)]
    stale = [f"{rule} {resource}: no such finding, drop the exception" for rule, resource in excepted - found.keys()]
    return new + sorted(stale)


def lint(program: Path, files: Iterable[Path]) -> Findings:
    """Return the findings of cfn-lint with the serverless rules."""
    options = ["--format", "json", "--regions", "eu-west-1", "--append-rules", "cfn_lint_serverless.rules", "--"]
    found = _run(program, *options, *map(str, files))
    return {(each["Rule"]["Id"], _resource(each["Location"]["Path"])): each["Message"] for each in found}


def _resource(path: list[str | int] | None) -> str:
    """Return the resource of a place in the template, or the section for a place outside the resources."""
    names = [str(part) for part in path or ["template"]]
    return names[1] if names[0] == "Resources" and len(names) > 1 else names[0]


def scan(program: Path, files: Iterable[Path]) -> Findings:
    """Return the failed checks of checkov. It reads nothing from the network."""
    options = ["--framework", "cloudformation", "--skip-download", "--quiet", "--compact", "--output", "json"]
    report = _run(program, *options, *(part for file in files for part in ("--file", str(file))))
    if report["summary"]["parsing_errors"] or report["summary"]["passed"] < LEAST_CHECKS:
        raise RulesError(f"checkov could not read the template: {report['summary']}")
    failed = report["results"]["failed_checks"]
    return {(each["check_id"], each["resource"].rpartition(".")[2]): each["check_name"] for each in failed}


def _run(program: Path, *arguments: str) -> Any:
    """Return the JSON that a program prints. Its exit code only says that there are findings."""
    command = [str(program), *arguments]
    done = subprocess.run(command, cwd=state.ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise RulesError(f"{program.name}: {done.stderr[-500:]}") from None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
