"""The run of the public MCP suite (`make conformance`) cannot pass by leaving something out."""

from dev.conformance.scenarios import FIXTURES, NOT_APPLICABLE, OWN, Endpoint, Result, judge

VERSION = "2026-07-28"
GOOD = Result("ping", 3)


def results(*at_own: Result) -> dict[Endpoint, dict[str, Result]]:
    """What the suite said, all of it at the door with the real tools."""
    return {"own": {result.scenario: result for result in at_own}, "fixtures": {}}


def test_a_scenario_passes_at_the_door_it_is_for() -> None:
    """And its checks are counted."""
    assert judge(VERSION, ["ping"], results(GOOD)).passed == (GOOD,)


def test_a_scenario_that_nothing_is_said_of_fails() -> None:
    """A new version of the suite brings new ones: somebody has to look, also when they pass."""
    verdict = judge(VERSION, ["brand-new"], results(Result("brand-new", 1)))
    assert verdict.failed == ("brand-new: unknown; add it to dev/conformance/scenarios.py",)


def test_a_failure_or_a_warning_fails() -> None:
    """One wrong among many right ones is enough."""
    verdict = judge(VERSION, ["ping"], results(Result("ping", 9, ("no answer",))))
    assert verdict.failed == ("ping: no answer",)


def test_a_scenario_that_was_not_run_fails() -> None:
    """So does one that checked nothing, and one that passed at the other door only."""
    for given in (results(), results(Result("ping", 0)), {"own": {}, "fixtures": {"ping": GOOD}}):
        assert judge(VERSION, ["ping"], given).failed == ("ping: the suite checked nothing",)


def test_what_does_not_apply_has_a_reason() -> None:
    """It is listed with it, whatever the suite said of it."""
    verdict = judge(VERSION, ["prompts-get-simple"], results(Result("prompts-get-simple", 0, ("no such prompt",))))
    assert verdict.not_applicable == (("prompts-get-simple", "there are no prompts, only tools"),)
    assert verdict.failed == ()


def test_every_scenario_has_one_place() -> None:
    """What must pass is not excused as well."""
    assert not OWN & FIXTURES
    assert not (OWN | FIXTURES) & NOT_APPLICABLE.keys()
