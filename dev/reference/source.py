"""Read from a module's source what Python does not keep: the string below an assignment, and the comment beside it."""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Final

_WORDS: Final = re.compile(r"\s+")


def attribute_docstrings(owner: type) -> dict[str, str]:
    """Return the docstring of each attribute of a class that has one, in one line."""
    body = _class_of(inspect.getmodule(owner), owner.__name__).body
    return {
        name: in_one_line(below.value.value)
        for statement, below in pairwise(body)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
        for name in _assigned(statement)
    }


def attribute_comments(owner: type) -> dict[str, str]:
    """Return the comment beside each attribute of a class that has one."""
    lines = inspect.getsource(owner).splitlines()
    found = (re.fullmatch(r"    (\w+) = [^#]*  # (.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def in_one_line(text: str) -> str:
    """Return the text of a docstring without its line breaks."""
    return _WORDS.sub(" ", text).strip()


def _class_of(module: ModuleType | None, name: str) -> ast.ClassDef:
    assert module is not None  # noqa: S101  (every class of ours has a module)
    tree = ast.parse(inspect.getsource(module))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _assigned(statement: ast.stmt) -> Iterator[str]:
    targets: Sequence[ast.expr] = ()
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    elif isinstance(statement, ast.Assign):
        targets = statement.targets
    return (target.id for target in targets if isinstance(target, ast.Name))
