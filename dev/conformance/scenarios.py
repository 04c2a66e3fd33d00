"""List every server scenario of the suite: which endpoint must pass it, or why it does not apply to this server."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Endpoint = Literal["own", "fixtures"]

OWN: Final = frozenset(
    {
        "caching",
        "dns-rebinding-protection",
        "http-header-validation",
        "input-required-result-unsupported-methods",
        "logging-set-level",
        "ping",
        "prompts-list",
        "resources-list",
        "sep-2164-resource-not-found",
        "server-initialize",
        "server-sse-multiple-streams",
        "tools-list",
    }
)
"""The endpoint as it is deployed must pass these."""

FIXTURES: Final = frozenset(
    {
        "http-custom-header-server-validation",
        "json-schema-2020-12",
        "server-stateless",
        "tools-call-audio",
        "tools-call-embedded-resource",
        "tools-call-error",
        "tools-call-image",
        "tools-call-mixed-content",
        "tools-call-simple-text",
    }
)
"""These call tools by the suite's own names: the endpoint must pass them when it serves `fixtures.py`."""

_NO_PROMPTS: Final = "there are no prompts, only tools"
_NO_RESOURCES: Final = "there are no resources, only tools"
_ONE_ANSWER: Final = "the answer is one JSON document, which carries no messages beside the result"
_NO_QUESTIONS: Final = "no tool asks its caller anything: what it needs is in its arguments"
_NO_EXTENSION: Final = "an optional extension, which the server does not announce"
_NO_SESSION: Final = "there are no sessions: nothing outlives a request"

NOT_APPLICABLE: Final = {
    "completion-complete": "there is nothing to complete: neither prompts nor resource templates",
    "elicitation-sep1034-defaults": _NO_QUESTIONS,
    "elicitation-sep1330-enums": _NO_QUESTIONS,
    "input-required-result-basic-elicitation": _NO_QUESTIONS,
    "input-required-result-basic-list-roots": _NO_QUESTIONS,
    "input-required-result-basic-sampling": _NO_QUESTIONS,
    "input-required-result-capability-check": _NO_QUESTIONS,
    "input-required-result-ignore-extra-params": _NO_QUESTIONS,
    "input-required-result-missing-input-response": _NO_QUESTIONS,
    "input-required-result-multi-round": _NO_QUESTIONS,
    "input-required-result-multiple-input-requests": _NO_QUESTIONS,
    "input-required-result-non-tool-request": _NO_QUESTIONS,
    "input-required-result-request-state": _NO_QUESTIONS,
    "input-required-result-result-type": _NO_QUESTIONS,
    "input-required-result-tampered-state": _NO_QUESTIONS,
    "input-required-result-validate-input": _NO_QUESTIONS,
    "prompts-get-embedded-resource": _NO_PROMPTS,
    "prompts-get-simple": _NO_PROMPTS,
    "prompts-get-with-args": _NO_PROMPTS,
    "prompts-get-with-image": _NO_PROMPTS,
    "resources-read-binary": _NO_RESOURCES,
    "resources-read-text": _NO_RESOURCES,
    "resources-subscribe": _NO_RESOURCES,
    "resources-templates-read": _NO_RESOURCES,
    "resources-unsubscribe": _NO_RESOURCES,
    "sep-2640-skills-directory": _NO_EXTENSION,
    "sep-2640-skills-enumeration": _NO_EXTENSION,
    "sep-2640-skills-manifest": _NO_EXTENSION,
    "server-session-lifecycle": _NO_SESSION,
    "server-sse-polling": _NO_SESSION,
    "tasks-capability-negotiation": _NO_EXTENSION,
    "tasks-dispatch-and-envelope": _NO_EXTENSION,
    "tasks-lifecycle": _NO_EXTENSION,
    "tasks-mrtr-composition": _NO_EXTENSION,
    "tasks-mrtr-input": _NO_EXTENSION,
    "tasks-request-headers": _NO_EXTENSION,
    "tasks-request-state-removal": _NO_EXTENSION,
    "tasks-required-task-error": _NO_EXTENSION,
    "tasks-status-notifications": _NO_EXTENSION,
    "tasks-wire-fields": _NO_EXTENSION,
    "tools-call-elicitation": _NO_QUESTIONS,
    "tools-call-sampling": _NO_QUESTIONS,
    "tools-call-with-logging": _ONE_ANSWER,
    "tools-call-with-progress": _ONE_ANSWER,
}
"""Scenarios that apply to neither endpoint, and the reason."""

NAMES: Final = OWN | FIXTURES | NOT_APPLICABLE.keys()

_WITH_SESSIONS: Final = "2025-11-25"
NOT_APPLICABLE_THERE: Final = {(_WITH_SESSIONS, "server-sse-multiple-streams"): _NO_SESSION}
"""Scenarios that do not apply in one version of the protocol, and the reason."""

WAIVED: Final = {"sep-2164-data-uri": "an error should repeat the address that was asked for; ours repeat nothing"}
"""Checks that the standard recommends and the contract forbids. Their warnings are accepted, their failures are not."""


@dataclass(frozen=True)
class Result:
    """The suite's result for one scenario at one endpoint. `faults` are the texts of its failures and warnings."""

    scenario: str
    successes: int
    faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Return whether the suite made at least one check, and found no fault."""
        return self.successes > 0 and not self.faults


@dataclass(frozen=True)
class Verdict:
    """The result for all scenarios of one protocol version."""

    passed: tuple[Result, ...]
    not_applicable: tuple[tuple[str, str], ...]
    """Name and reason."""
    failed: tuple[str, ...]
    """Lines to print."""


def reason(scenario: str, version: str) -> str | None:
    """Return why the scenario does not apply in this version of the protocol, or None if it applies."""
    return NOT_APPLICABLE_THERE.get((version, scenario)) or NOT_APPLICABLE.get(scenario)


def endpoint(scenario: str) -> Endpoint | None:
    """Return the endpoint that must pass the scenario, or None if this module names none."""
    if scenario in FIXTURES:
        return "fixtures"
    return "own" if scenario in OWN else None


def judge(version: str, scenarios: Iterable[str], results: dict[Endpoint, dict[str, Result]]) -> Verdict:
    """Compare the results at both endpoints with this module. A scenario that it does not name fails."""
    passed, not_applicable, failed = [], [], []
    for scenario in scenarios:
        where, why_not = endpoint(scenario), reason(scenario, version)
        if why_not is not None:
            not_applicable.append((scenario, why_not))
        elif where is None:
            failed.append(f"{scenario}: unknown; add it to dev/conformance/scenarios.py")
        elif (result := results[where].get(scenario)) is not None and result.passed:
            passed.append(result)
        else:
            faults = "; ".join(result.faults) if result and result.faults else "the suite checked nothing"
            failed.append(f"{scenario}: {faults}")
    return Verdict(tuple(passed), tuple(not_applicable), tuple(failed))
