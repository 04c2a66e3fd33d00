"""`make check-template` fails for a finding of the public rules that has no reason."""

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.template_rules.__main__ import EXCEPTIONS, RulesError, judge, lint, scan

FOUND = {("CKV_AWS_26", "AlarmTopic"): "the topic is not encrypted"}
ACCEPTED = [{"rule": "CKV_AWS_26", "resources": ["AlarmTopic"], "reason": "it is an example"}]


def test_a_finding_without_an_exception_fails() -> None:
    """The line names the rule, the resource and the finding."""
    assert judge(FOUND, []) == ["CKV_AWS_26 AlarmTopic: the topic is not encrypted"]
    assert judge(FOUND, ACCEPTED) == []


def test_an_exception_is_for_one_resource() -> None:
    """The same finding of a new resource fails."""
    assert len(judge({**FOUND, ("CKV_AWS_26", "Another"): "the same"}, ACCEPTED)) == 1


def test_an_exception_without_a_finding_fails() -> None:
    """Its reason is no longer true, or the rule has gone."""
    assert judge({}, ACCEPTED) == ["CKV_AWS_26 AlarmTopic: no such finding, drop the exception"]


def test_each_exception_has_a_reason() -> None:
    """One entry for each rule."""
    exceptions = tomllib.loads(EXCEPTIONS.read_text())["exception"]
    assert all(each["reason"].endswith(".") and each["resources"] for each in exceptions)
    assert len({each["rule"] for each in exceptions}) == len(exceptions)


def program(directory: Path, output: str) -> Path:
    """Return a program that prints this text."""
    written = directory / "program"
    written.write_text(f"#!{sys.executable}\nprint({output!r})\n")
    written.chmod(0o755)
    return written


@pytest.mark.parametrize("tool", [lint, scan])
def test_a_tool_that_fails_is_no_success(tool: Callable[[Path, list[Path]], object], tmp_path: Path) -> None:
    """It prints a traceback, and no result."""
    with pytest.raises(RulesError):
        tool(program(tmp_path, "Traceback"), [])


@pytest.mark.parametrize("summary", [{"parsing_errors": 1, "passed": 99}, {"parsing_errors": 0, "passed": 3}])
def test_a_scan_of_nothing_is_no_success(summary: dict[str, int], tmp_path: Path) -> None:
    """checkov skips a file that it cannot read."""
    report = {"summary": summary, "results": {"failed_checks": []}}
    with pytest.raises(RulesError, match="could not read"):
        scan(program(tmp_path, str(report).replace("'", '"')), [])
