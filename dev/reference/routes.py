"""Write docs/routes.md from the API's description."""

from collections import Counter
from typing import Any

from chat.app import app
from dev.reference.markdown import Schema, code, fill, kind, resolve, table
from dev.reference.source import in_one_line

Operation = dict[str, Any]
Answers = dict[str, str]


def page() -> str:
    """Return the page."""
    document = app.openapi()
    found = [
        (f"{method.upper()} {path}", operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    overview = table(["Route", ""], [[f"[{code(name)}](#{_anchor(name)})", _first(each)] for name, each in found])
    schemas = document["components"]["schemas"]
    usual = _usual_answers([operation for name, operation in found if "{user_id}" in name])
    sections = [_section(name, each, schemas, usual) for name, each in found]
    return fill("routes", "\n\n".join([overview, *sections, "## Usual problems", _answers(usual)]))


def _anchor(name: str) -> str:
    """Return the anchor that GitHub makes of the heading."""
    return "".join(each for each in name.lower().replace(" ", "-") if each.isalnum() or each in "-_")


def _first(operation: Operation) -> str:
    text = in_one_line(operation.get("description", ""))
    return text.partition(". ")[0].rstrip(".")


def _usual_answers(operations: list[Operation]) -> Answers:
    """Return the problems that most operations describe in the same words."""
    described = Counter(each for operation in operations for each in _described(operation).items())
    return {
        status: text for (status, text), count in described.items() if count > len(operations) / 2 and status >= "4"
    }


def _described(operation: Operation) -> Answers:
    return {status: _answer(response) for status, response in sorted(operation["responses"].items())}


def _answers(described: Answers) -> str:
    return table(["Status", "Answer"], [[status, text] for status, text in sorted(described.items())])


def _section(name: str, operation: Operation, schemas: Schema, usual: Answers) -> str:
    parts = [f"## {code(name)}", in_one_line(operation.get("description", ""))]
    sent = [*_parameters(operation, schemas), *_body(operation, schemas)]
    if sent:
        parts.append(table(["Sent", "In", "Type", "Meaning"], sent))
    described = _described(operation)
    parts.append(_answers(dict(described.items() - usual.items())))
    if shared := [status for status in sorted(usual) if described.get(status) == usual[status]]:
        parts.append(f"And [as usual](#usual-problems): {', '.join(shared)}.")
    return "\n\n".join(parts)


def _parameters(operation: Operation, schemas: Schema) -> list[list[str]]:
    parameters = [each for each in operation.get("parameters", []) if each["name"] != "user_id"]
    return [
        [
            code(each["name"]),
            each["in"] + (", required" if each.get("required") and each["in"] != "path" else ""),
            _kind(each["schema"], schemas),
            each.get("description") or each["schema"].get("description", ""),
        ]
        for each in parameters
    ]


def _kind(schema: Schema, schemas: Schema) -> str:
    default = schema.get("default")
    return kind(schema, schemas).removesuffix(" or null") + (f"; {code(default)} by default" if default else "")


def _body(operation: Operation, schemas: Schema) -> list[list[str]]:
    """Return the fields of the body: of the first one, if there are several."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return []
    schema = content["schema"].get("anyOf", [content["schema"]])[0]
    model = resolve(schema, schemas)
    required = model.get("required", [])
    return [
        [
            code(name),
            "body" + (", required" if name in required else ""),
            _kind(described, schemas),
            described.get("description", ""),
        ]
        for name, described in model["properties"].items()
    ]


def _answer(response: dict[str, Any]) -> str:
    headers = [code(name) for name, header in response.get("headers", {}).items() if header.get("required")]
    return in_one_line(response["description"]) + (f" With {', '.join(headers)}." if headers else "")
