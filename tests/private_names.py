"""Find where shipped code uses a private name of a dependency, in its syntax trees and in the classes it derives from.

The search finds names that are written out. It does not find a computed name, nor a change through a local variable to
an attribute that looks public.
"""

import ast
import builtins
import inspect
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from dis import get_instructions
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

OWN: Final = frozenset({"taskchat", "chat", "mcp_tools", "retention"})
"""Packages of this repository."""

INTERNAL: Final = ("pg8000.core.",)
"""Modules without documentation by their vendor. Each name in them counts as private."""

HOOKS: Final = frozenset({"sys.meta_path", "sys.path_hooks"})
"""Names of the standard library that change how every package is imported."""

BY_TEXT: Final = frozenset(
    {"getattr", "setattr", "delattr", "hasattr", "import_module", "__import__", "attrgetter", "methodcaller"}
)
"""Functions that take an attribute's name as a string."""

OF_NAMED_TUPLES: Final = frozenset({"_asdict", "_fields", "_make", "_replace"})
"""Names that Python documents in spite of the underscore."""

OF_SQLALCHEMY: Final = frozenset({"__tablename__", "__table_args__"})
"""Names that SQLAlchemy documents in the same way."""

_KINDS: Final = (
    type,
    int,
    str,
    dict,
    Exception,
    Iterator,
    AsyncIterator,
    Coroutine,
    ModuleType,
    FunctionType,
    ExitStack,
)
OF_PYTHON: Final = frozenset(name for kind in _KINDS for name in dir(kind) if name.endswith("__")) | {
    *("__version__", "__all__", "__file__", "__path__", "__future__", "__getattr__", "__await__"),
    *("__aenter__", "__aexit__", "__post_init__", "__slots__"),
}
"""Names with two underscores on each side that Python gives a meaning."""


@dataclass(frozen=True, order=True)
class Use:
    """Hold a private name, and the file that uses it."""

    file: str
    name: str
    line: int = field(default=0, compare=False)


def is_private(name: str) -> bool:
    """Return whether the name begins with an underscore and Python does not document it."""
    if name.startswith("__") and name.endswith("__"):
        return name not in OF_PYTHON | OF_SQLALCHEMY
    return name.startswith("_") and name != "_" and name not in OF_NAMED_TUPLES


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the parts of an assignment or a deletion that are written to."""
    if isinstance(node, ast.Assign | ast.Delete):
        waiting = list(node.targets)
    else:
        waiting = [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For) else []
    while waiting:
        target = waiting.pop()
        if isinstance(target, ast.Tuple | ast.List):
            waiting += target.elts
        else:
            yield target


def _is_self(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def _defined(body: ast.AST) -> set[str]:
    """Return the private names that a class defines: in its body, and on `self`."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        names |= {target.id for target in _targets(node) if isinstance(target, ast.Name)}
    for node in ast.walk(body):
        for target in _targets(node):
            if isinstance(target, ast.Attribute) and _is_self(target.value):
                names.add(target.attr)
    return {name for name in names if is_private(name)}


@cache
def owners(kind: Any) -> dict[str, str]:
    """Return the private names of a dependency's class, each with the class that has it first."""
    found: dict[str, str] = {}
    for base in kind.__mro__ if isinstance(kind, type) else ():
        names = {*vars(base), *vars(base).get("__annotations__", {}), *_stored(base)}
        for name in filter(is_private, names if base is not object else ()):
            found.setdefault(name, f"{base.__module__}.{base.__qualname__}.{name}")
    return found


def _stored(kind: type) -> set[str]:
    """Return the attributes that the methods of a class set, by their bytecode: some classes do not declare them."""
    methods = [inspect.unwrap(each) for each in vars(kind).values() if isinstance(each, FunctionType)]
    return {str(step.argval) for method in methods for step in get_instructions(method) if step.opname == "STORE_ATTR"}


@dataclass
class Module:
    """Hold a parsed module of this repository."""

    name: str
    file: str
    tree: ast.Module

    @classmethod
    def read(cls, path: Path, root: Path, shown_from: Path) -> "Module":
        """Read a file below an import root."""
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        return cls(name, path.relative_to(shown_from).as_posix(), ast.parse(path.read_text()))

    @cached_property
    def imports(self) -> dict[str, str]:
        """Return the dotted name of each imported name."""
        known: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                known |= {each.asname or each.name.split(".")[0]: each.name for each in node.names if each.asname}
                known |= {each.name.split(".")[0]: each.name.split(".")[0] for each in node.names if not each.asname}
            if isinstance(node, ast.ImportFrom):
                known |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
        return known

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """Return the classes that the module defines."""
        return {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)}

    def dotted(self, node: ast.expr) -> str | None:
        """Return the full name of an expression that begins with an imported name, without its subscripts."""
        if isinstance(node, ast.Subscript):
            return self.dotted(node.value)
        if isinstance(node, ast.Attribute):
            before = self.dotted(node.value)
            return before and f"{before}.{node.attr}"
        return self.imports.get(node.id) if isinstance(node, ast.Name) else None


def _is_own(dotted: str) -> bool:
    return dotted.split(".")[0] in OWN


def _is_changeable(dotted: str) -> bool:
    """Return whether code may set an attribute there without a row:

    in our own packages, and in the standard library.
    """
    root = dotted.split(".")[0]
    return root in OWN or (root in sys.stdlib_module_names and root not in ("sys", "builtins"))


def _resolve(dotted: str) -> Any:
    """Return the object of this name, which may lie in a module that must be imported first."""
    parts = dotted.split(".")
    found: Any = import_module(parts[0])
    for place, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            import_module(".".join(parts[:place]))
        found = getattr(found, part)
    return found


class Search:
    """Search modules of this repository for private names of dependencies."""

    def __init__(self, modules: list[Module]) -> None:
        """Search these modules. Classes may derive from classes of another of these modules."""
        self._modules = {module.name: module for module in modules}

    def uses(self) -> set[Use]:
        """Return every use, once per file and name."""
        return {Use(module.file, name, line) for module in self._modules.values() for name, line in self._in(module)}

    def _in(self, module: Module) -> Iterator[tuple[str, int]]:
        for node in ast.walk(module.tree):
            names = [*_imported(node), *_by_text(module, node), *_assigned(module, node)]
            yield from ((name, getattr(node, "lineno", 0)) for name in names)
        yield from self._accessed(module, module.tree, None)

    def _accessed(self, module: Module, node: ast.AST, kind: ast.ClassDef | None) -> Iterator[tuple[str, int]]:
        """Yield private names that are read, written or overridden below a node of the class `kind`."""
        if isinstance(node, ast.ClassDef):
            kind = node
            foreign, _ = self._names(module, node)
            yield from ((foreign[name], node.lineno) for name in _defined(node) & foreign.keys())
        if isinstance(node, ast.Attribute):
            yield from ((name, node.lineno) for name in self._attribute(module, node, kind))
        for child in ast.iter_child_nodes(node):
            yield from self._accessed(module, child, kind)

    def _attribute(self, module: Module, node: ast.Attribute, kind: ast.ClassDef | None) -> Iterator[str]:
        dotted = module.dotted(node)
        if dotted and not _is_own(dotted):
            if is_private(node.attr) or dotted.startswith(INTERNAL) or dotted in HOOKS:
                yield dotted
        elif is_private(node.attr) and module.dotted(node.value) not in OWN | self._modules.keys():
            foreign, own = self._names_of(module, self._holders(module, node, kind))
            if node.attr in foreign or node.attr not in own:
                yield foreign.get(node.attr, node.attr)

    def _holders(self, module: Module, node: ast.Attribute, kind: ast.ClassDef | None) -> list[ast.ClassDef]:
        """Return the classes whose attribute it may be: for another object than `self`, those of the same module."""
        if _is_self(node.value):
            return [kind] if kind else []
        return [each for each in module.classes.values() if node.attr in _defined(each)]

    def _names_of(self, module: Module, kinds: list[ast.ClassDef]) -> tuple[dict[str, str], set[str]]:
        foreign: dict[str, str] = {}
        own: set[str] = set()
        for kind in kinds:
            more, ours = self._names(module, kind)
            foreign, own = foreign | more, own | ours
        return foreign, own

    def _names(self, module: Module, kind: ast.ClassDef) -> tuple[dict[str, str], set[str]]:
        """Return the private names of one of our classes: those of its foreign bases, and its own."""
        foreign: dict[str, str] = {}
        own = _defined(kind)
        for base in kind.bases:
            there, node = self._own_class(module, base)
            if node is not None:
                more, ours = self._names(there, node)
                foreign, own = foreign | more, own | ours
            else:
                expression = base.value if isinstance(base, ast.Subscript) else base
                foreign |= owners(
                    _resolve(module.dotted(expression) or f"{builtins.__name__}.{ast.unparse(expression)}")
                )
        return foreign, own

    def _own_class(self, module: Module, base: ast.expr) -> tuple[Module, ast.ClassDef | None]:
        dotted = module.dotted(base) or f"{module.name}.{ast.unparse(base)}"
        there = self._modules.get(dotted.rpartition(".")[0], module)
        return there, there.classes.get(dotted.rpartition(".")[2]) if _is_own(dotted) else None


def _imported(node: ast.AST) -> Iterator[str]:
    """Yield the private and internal names in an import statement."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [each.name for each in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = [f"{node.module}.{each.name}" for each in node.names]
    for name in names:
        if not _is_own(name) and (any(map(is_private, name.split("."))) or name.startswith(INTERNAL) or name in HOOKS):
            yield name


def _by_text(module: Module, node: ast.AST) -> Iterator[str]:
    """Yield private names in strings, and names that `setattr` changes in an imported object."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        inside = ast.unparse(node.value)
        if (inside.startswith("vars(") or inside.endswith(".__dict__")) and is_private(str(node.slice.value)):
            yield str(node.slice.value)
    if not isinstance(node, ast.Call):
        return
    called = ast.unparse(node.func).rpartition(".")[2]
    texts = [str(each.value) for each in node.args if isinstance(each, ast.Constant)] if called in BY_TEXT else []
    yield from (text for text in texts if any(map(is_private, text.split("."))))
    if called in ("setattr", "delattr"):
        yield from ("__getattr__" for text in texts if text == "__getattr__")
        changed = module.dotted(node.args[0])
        if changed and not _is_changeable(changed):
            name = node.args[1]
            yield f"{changed}.{name.value if isinstance(name, ast.Constant) else '*'}"


def _assigned(module: Module, node: ast.AST) -> Iterator[str]:
    """Yield attributes and items of imported modules, classes and objects that are assigned to or deleted."""
    for target in _targets(node):
        dotted = module.dotted(target) if isinstance(target, ast.Attribute | ast.Subscript) else None
        if dotted and not _is_changeable(dotted):
            yield dotted
