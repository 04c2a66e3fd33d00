"""The run of the public MCP suite (`make conformance`) cannot pass by leaving something out."""

from dev.conformance.scenarios import FIXTURES, NOT_APPLICABLE, OWN, Endpoint, Result, judge

VERSION = "2026-07-28"
GOOD = Result("ping", 3)


def results(*at_own: Result) -> dict[Endpoint, dict[str, Result]]:
    """Return these results for the server with the real tools, and none for the server with fixtures."""
    return {"own": {result.scenario: result for result in at_own}, "fixtures": {}}


def test_a_scenario_passes_at_its_own_server() -> None:
    """The verdict contains its checks."""
    assert judge(VERSION, ["ping"], results(GOOD)).passed == (GOOD,)


def test_an_unlisted_scenario_fails() -> None:
    """A new version of the suite has new scenarios, and an engineer must decide about each, also when it passes."""
    verdict = judge(VERSION, ["brand-new"], results(Result("brand-new", 1)))
    assert verdict.failed == ("brand-new: unknown; add it to dev/conformance/scenarios.py",)


def test_a_failure_or_a_warning_fails() -> None:
    """One failed check among many others is enough."""
    verdict = judge(VERSION, ["ping"], results(Result("ping", 9, ("no answer",))))
    assert verdict.failed == ("ping: no answer",)


def test_a_scenario_that_was_not_run_fails() -> None:
    """A scenario that checked nothing fails too, and one that passed only at the other server."""
    for given in (results(), results(Result("ping", 0)), {"own": {}, "fixtures": {"ping": GOOD}}):
        assert judge(VERSION, ["ping"], given).failed == ("ping: the suite checked nothing",)


def test_a_scenario_that_does_not_apply_has_a_reason() -> None:
    """The verdict lists the reason, whatever the suite's result is."""
    verdict = judge(VERSION, ["prompts-get-simple"], results(Result("prompts-get-simple", 0, ("no such prompt",))))
    assert verdict.not_applicable == (("prompts-get-simple", "there are no prompts, only tools"),)
    assert verdict.failed == ()


def test_every_scenario_has_one_place() -> None:
    """No scenario both must pass and is excused."""
    assert not OWN & FIXTURES
    assert not (OWN | FIXTURES) & NOT_APPLICABLE.keys()
