"""Imports that do less: what a cold start would build or load and no request ever uses is left for later, or out.

Nothing of it outlives the block in which it is asked for: what is imported later is imported as usual.
"""

import gc
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, cast

LEFT_OUT: Final = (
    "agents.repl",  # a terminal's
    "cryptography.x509",  # PyJWT's, for keys that come in certificates: ours are JSON Web Keys
    "email_validator",  # FastAPI's, for the addresses in its own description of APIs
    "fastmcp.server.providers.skills",  # files that are served to models
    "joserfc",  # FastMCP's own judgement of tokens: ours is in auth.py
    "mcp.client",  # the tools are called directly
    "mcp.server.mcpserver",  # the SDK's own server: ours is FastMCP's
    "openai.lib.azure",
    "openai.lib.bedrock",
    "openai.lib.streaming",  # nothing here is streamed
    "pydantic.v1",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.postgresql.pg_catalog",  # for who asks a database what tables it has
    "sqlalchemy.dialects.postgresql.psycopg",
)
"""What our dependencies import and no request uses: a sixth of the modules, and of the time."""

USED_TYPES: Final = frozenset(
    {"chat", "chat_model", "completion_usage", "responses", "shared", "shared_params"}
    | {"websocket_connection_options", "websocket_reconnection"}
)
"""Of `openai.types`, what is used. The hundred others belong to what else the vendor sells."""

DEFERRED: Final = frozenset({"agents", "mcp", "mcp_types"})
"""Whose type adapters are built at first use: most are for what a client reads. FastAPI's must be built at once, since
it silences a warning just then."""


def _is_left_out(name: str) -> bool:
    parent, _, last = name.rpartition(".")
    if parent == "openai.types":
        return last not in USED_TYPES
    if parent == "openai.types.responses":
        return last.endswith("_event")  # of a stream
    return any(name == left or name.startswith(f"{left}.") for left in LEFT_OUT)


class LeftOutError(RuntimeError):
    """Raised when something is used after all that was left out. It then has to be taken off the list."""


class _Absent(Exception):
    """Stands for a class of a module that was left out: nothing is one, catches one or can be made one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise LeftOutError(type(self).__qualname__)

    def __init_subclass__(cls) -> None:
        """Allowed: whoever inherits can't be made either."""

    def __class_getitem__(cls, _parameters: Any) -> type["_Absent"]:
        return cls

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(cls)


class _Hollow:
    """Finds and loads the modules that are left out: empty ones, in which every name is an `_Absent`."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> ModuleSpec | None:
        """The hollow module of this name, if it is left out."""
        if not _is_left_out(name):
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]  # a loader by its methods

    def create_module(self, _spec: ModuleSpec) -> None:
        """The usual one."""

    def exec_module(self, module: ModuleType) -> None:
        """Have the module invent what it is asked for."""
        self.made.append(module.__name__)

        def invent(name: str) -> type[_Absent]:
            if name.startswith("__"):
                raise AttributeError(name)
            known_as = {"__module__": module.__name__, "__qualname__": f"{module.__name__}.{name}"}
            absent = type(name, (_Absent,), known_as)
            setattr(module, name, absent)
            return absent

        module.__getattr__ = invent  # type: ignore[method-assign]


def _forget(made: Sequence[str]) -> None:
    """Drop the hollow modules, and what the packages above them took out of them: who wants it later gets the real."""
    for name in made:
        hollow, (parent, _, last) = sys.modules.pop(name), name.rpartition(".")
        if vars(sys.modules.get(parent, hollow)).get(last) is hollow:
            delattr(sys.modules[parent], last)
    above = {name[: dot.start()] for name in made for dot in re.finditer(r"\.", name)}
    for package in filter(None, map(sys.modules.get, sorted(above))):
        absent = {
            name: value for name, value in vars(package).items() if type(value) is type and value.__base__ is _Absent
        }
        if absent:
            _import_later(package, absent)


def _import_later(package: ModuleType, absent: dict[str, type[_Absent]]) -> None:
    """Have the package import these names when it is asked for them."""
    otherwise = vars(package).get("__getattr__")

    def import_now(name: str) -> Any:
        if name in absent:
            module, _, name_there = absent[name].__qualname__.rpartition(".")  # `__module__` is theirs to change
            real = getattr(import_module(module), name_there)
            setattr(package, name, real)
            return real
        if otherwise:
            return otherwise(name)
        message = f"module {package.__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=package)

    for name in absent:
        delattr(package, name)
    package.__getattr__ = import_now  # type: ignore[method-assign]


@contextmanager
def lean() -> Iterator[None]:
    """In the block, schemas are built at first use, no garbage is looked for, and what is left out is left out.

    Raises KeyError when pydantic no longer has what this postpones.
    """
    gc.disable()  # nothing that an import makes is garbage, and looking for it takes a fifth of the time
    hollow = _Hollow()
    sys.meta_path.insert(0, hollow)
    try:
        with _schemas_later():
            yield
    finally:
        sys.meta_path.remove(hollow)
        try:
            _forget(hollow.made)
        finally:
            gc.freeze()  # what there is now stays, and need not be looked through
            gc.enable()


@contextmanager
def _schemas_later() -> Iterator[None]:
    """In the block, a schema is built when it is first used."""
    from pydantic import TypeAdapter  # not before the collector is off
    from pydantic._internal._config import config_defaults

    usual, at_once, adapter = vars(TypeAdapter)["_defer_build"], config_defaults["defer_build"], cast(Any, TypeAdapter)
    config_defaults["defer_build"] = True
    adapter._defer_build = property(lambda self: self._module_name.partition(".")[0] in DEFERRED)
    try:
        yield
    finally:
        adapter._defer_build, config_defaults["defer_build"] = usual, at_once
