"""A page of tasks has the size that docs/scaling.md counts on."""

from taskchat.tasks.queries import PAGE_SIZE


def test_a_page_has_at_most_fifty_tasks() -> None:
    """This bounds the rows that a list call reads, and the input tokens of its result."""
    assert PAGE_SIZE == 50
