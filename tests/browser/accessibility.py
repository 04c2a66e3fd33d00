"""Look for faults that keep people out, with axe-core."""

from typing import Any

from playwright.sync_api import Page

from dev import chromium
from tests.browser.person import Person

RUN = "() => axe.run(document, { preload: false, resultTypes: ['violations'] })"

END_ANIMATIONS = """() => Promise.all(document.getAnimations()
    .filter((each) => each.effect.getComputedTiming().endTime !== Infinity)
    .map((each) => each.finished.catch(() => {})))"""


def prepare(person: Person) -> None:
    """Load axe-core into every page that the person opens from now on."""
    person.context.add_init_script(path=chromium.axe())


def violations(page: Page) -> list[str]:
    """Return a line for each rule that the page breaks, and each element that breaks it."""
    page.evaluate(END_ANIMATIONS)
    found: dict[str, Any] = page.evaluate(RUN)
    return [
        f"{rule['id']}: {rule['help']}: {node['html']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
