"""Check that one module of the bench knows the domain."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OTHERS = sorted({*HERE.glob("*.py")} - {HERE / name for name in ("tasks.py", "floor.py", "test_tasks.py")})


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_no_other_module_names_a_task(path: Path) -> None:
    """No text of the module holds a message, a tool's name or the table."""
    nodes = ast.walk(ast.parse(path.read_text()))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert re.findall(r"\w*task(?!chat)\w*|milk|errand", " ".join(texts), re.IGNORECASE) == []
