"""Law 5 of the design: there are exactly five tools."""

from taskchat.tasks import toolset
from tests.conftest import run


def test_the_tools_are_these_five() -> None:
    """Both functions serve this toolset."""
    from chat.app import process

    names = {"add_task", "list_tasks", "complete_task", "delete_task", "update_task"}
    assert {tool.name for tool in run(process.tools.list_tools())} == names
    assert len(toolset.tools) == len(names)
