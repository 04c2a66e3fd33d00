"""Faster imports for a cold start: no garbage collection, and pydantic schemas that are built at first use.

Nothing of it outlives the block: a later import works as usual.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

DEFERRED: Final = frozenset({"agents", "mcp", "mcp_types"})
"""Packages whose type adapters are built at first use: a client's code needs most of them, and no request does.
FastAPI's must be built at once, because FastAPI silences a warning of pydantic's only at that moment."""


@contextmanager
def fast() -> Iterator[None]:
    """Import without garbage collection and without building schemas, in the block.

    Raises KeyError or AttributeError when pydantic no longer has the switches that this turns (docs/upgrading.md).
    """
    gc.disable()  # an import makes no garbage, and the collector takes a fifth of the time to look for it
    try:
        with _schemas_at_first_use():
            yield
    finally:
        gc.freeze()  # what exists now stays for the life of the process: the collector need not look at it again
        gc.enable()


@contextmanager
def _schemas_at_first_use() -> Iterator[None]:
    """Have pydantic build each schema when it is first used. Pydantic has no public switch for classes of others."""
    from pydantic import TypeAdapter  # not before the collector is off
    from pydantic._internal._config import config_defaults

    usual, at_once, adapter = vars(TypeAdapter)["_defer_build"], config_defaults["defer_build"], cast(Any, TypeAdapter)
    config_defaults["defer_build"] = True
    adapter._defer_build = property(lambda self: self._module_name.partition(".")[0] in DEFERRED)
    try:
        yield
    finally:
        adapter._defer_build, config_defaults["defer_build"] = usual, at_once
