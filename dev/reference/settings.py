"""Write docs/settings.md from the settings' classes and the template's parameters."""

from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]

from dev import state
from dev.reference.markdown import code, fill, kind, table
from dev.reference.source import attribute_docstrings, in_one_line
from taskchat.settings import AuditSettings, MigrationSettings, RetentionSettings, Settings

CLASSES: Final[dict[type[BaseModel], str]] = {
    Settings: "The chat API and the MCP endpoint",
    RetentionSettings: "The retention function",
    MigrationSettings: "`make migrate`",
    AuditSettings: "The operator's commands that read the database",
}


def page() -> str:
    """Return the page."""
    template: dict[str, Any] = yaml_parse((state.ROOT / "template.yaml").read_text())
    setting = _parameters(template)
    parts = [_section(model, title, setting) for model, title in CLASSES.items()]
    parameters = table(
        ["Parameter", "Default", "Values", "Meaning"],
        [
            _parameter(name, described)
            for name, described in template["Parameters"].items()
            if name not in setting.values()
        ],
    )
    return fill(
        "settings", "\n".join([*parts, "## More parameters of the template\n\nThese set no variable.\n", parameters])
    )


def _section(model: type[BaseModel], title: str, parameters: dict[str, str]) -> str:
    meanings, schema = attribute_docstrings(model), model.model_json_schema()
    rows = [
        [
            code(name),
            _kind(name, schema["properties"][name]),
            _default(model.model_fields[name.lower()].get_default()),
            code(parameters[name]) if name in parameters else "",
            meanings[name.lower()],
        ]
        for name in schema["properties"]
    ]
    return f"## {title}\n\n" + table(["Variable", "Type", "Default", "Parameter", "Meaning"], rows) + "\n"


def _kind(name: str, schema: dict[str, Any]) -> str:
    described = kind(schema, {}).removesuffix(" or null")
    described = described.replace("list of text", "texts with commas between them")
    is_secret = "password" in (schema.get("format"), *(each.get("format") for each in schema.get("anyOf", ())))
    return described + (", secret" if is_secret else "")


def _default(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    shown = default.get_secret_value() if hasattr(default, "get_secret_value") else default
    return code(shown) if shown or isinstance(shown, int) else "none"


def _parameters(template: dict[str, Any]) -> dict[str, str]:
    """Return the parameter of each variable that has one."""
    functions = [each["Properties"] for each in template["Resources"].values() if "Function" in each["Type"]]
    declared = [template["Globals"]["Function"], *functions]
    variables = [each.get("Environment", {}).get("Variables", {}) for each in declared]
    found = {name: _referred(value, template) for each in reversed(variables) for name, value in each.items()}
    return {name: parameter for name, parameter in found.items() if parameter}


def _referred(value: Any, template: dict[str, Any]) -> str | None:
    """Return the first parameter that a value refers to."""
    if isinstance(value, dict) and value.get("Ref") in template["Parameters"]:
        return str(value["Ref"])
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, (_referred(each, template) for each in inner)), None)


def _parameter(name: str, described: dict[str, Any]) -> list[str]:
    return [code(name), _parameter_default(described), _values(described), in_one_line(described["Description"])]


def _parameter_default(described: dict[str, Any]) -> str:
    default = described.get("Default", "required")
    return "empty" if default == "" else default if default == "required" else code(default)


def _values(described: dict[str, Any]) -> str:
    if "AllowedValues" in described:
        return ", ".join(code(each) if each != "" else "empty" for each in described["AllowedValues"])
    if "AllowedPattern" in described:
        pattern = described["AllowedPattern"]
        return f"empty, or {code(pattern[1:])}" if pattern.startswith("|") else code(pattern)
    least, most = described.get("MinValue"), described.get("MaxValue")
    return "any" if least is None else f"{least:,} or more" if most is None else f"{least:,} to {most:,}"
