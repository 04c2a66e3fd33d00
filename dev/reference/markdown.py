"""Write Markdown: tables, and JSON Schemas in a few words."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Schema = dict[str, Any]


def fill(name: str, generated: str) -> str:
    """Return the page whose text is in the file `name`.md, with the generated part in its place."""
    return Path(__file__).with_name(f"{name}.md").read_text().replace("{generated}", generated)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. A vertical bar within a cell stays a bar."""
    lines = [_row(heads), _row(["---"] * len(heads), space=False)]
    return "\n".join([*lines, *(_row([cell.replace("|", r"\|") for cell in row]) for row in rows)])


def _row(cells: Sequence[str], *, space: bool = True) -> str:
    text = " | ".join(cells) if space else "|".join(cells)
    return f"| {text} |" if space else f"|{text}|"


def code(value: object) -> str:
    """Return a value as code: a text as it is, and everything else as JSON."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def resolve(schema: Schema, schemas: Schema) -> Schema:
    """Return the schema itself in place of a reference to it."""
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def kind(schema: Schema, schemas: Schema) -> str:
    """Return the type of a value in words, with its limits. `schemas` has what a reference names."""
    schema = resolve(schema, schemas)
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(kind(each, schemas) for each in choices))
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return ", ".join(code(each) if each != "" else "empty" for each in schema["enum"])
    return _plain(schema, schemas)


def _plain(schema: Schema, schemas: Schema) -> str:
    match schema.get("type"):
        case "array":
            return f"list of {kind(schema['items'], schemas)}" if "items" in schema else "list"
        case "string":
            return {"uuid": "UUID", "date-time": "time"}.get(schema.get("format", ""), "text") + _length(schema)
        case "integer" | "number":
            return "number" + _bounds(schema)
        case "null":
            return "null"
        case None:
            return "any JSON"
    return str(schema["type"])


def _length(schema: Schema) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    return "" if most is None else f", {least:,} to {most:,} characters"


def _bounds(schema: Schema) -> str:
    least = schema.get("minimum")
    most = schema.get("maximum", schema["exclusiveMaximum"] - 1 if "exclusiveMaximum" in schema else None)
    if least is None:
        return ""
    return f", {least:,} or more" if most is None else f", {least:,} to {most:,}"
