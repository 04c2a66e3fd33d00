"""Write docs/events.md from the API's description, and the docstrings of the events' classes."""

from typing import Any

from chat.app import app
from chat.stream.sse import NAMES
from dev.reference.markdown import Schema, code, fill, kind, resolve, table
from dev.reference.source import attribute_docstrings, in_one_line


def page() -> str:
    """Return the page."""
    schemas = app.openapi()["components"]["schemas"]
    return fill("events", "\n".join(_section(event, schemas) for event in NAMES).strip())


def _section(event: type[Any], schemas: Schema) -> str:
    described = schemas[f"{event.__name__}Event"]["properties"]["data"]
    return f"## {NAMES[event]}\n\n{in_one_line(event.__doc__ or '')}\n\n{_data(event, described, schemas)}\n"


def _data(event: type[Any], described: Schema, schemas: Schema) -> str:
    """Return a table of the fields, or a link to the table of all problems."""
    data, meanings = resolve(described, schemas), attribute_docstrings(event)
    if "properties" not in data:
        return "`data` is one of the [problem types](problems.md)."
    rows = [
        [code(name), kind(each, schemas), meanings.get(name) or str(each.get("description", ""))]
        for name, each in data["properties"].items()
    ]
    return table(["Field", "Type", "Meaning"], rows)
