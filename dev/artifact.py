"""Read the artifact that `sam build` made: the functions as the template declares them, and their sizes.

As a program it prints the sizes and fails when one is too large, for `make build`.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]

from dev import state

BUILD = state.ROOT / ".aws-sam" / "build"
LAMBDA_LIMIT_MB = 250  # function and layers together, unzipped
LIMIT_MB = 200  # our own: it leaves room for a dependency's next release, and a smaller artifact starts sooner
MEGABYTE = 1_000_000


class ArtifactError(Exception):
    """Raised when there is no built artifact, or it is wrong; its text is the line that the command prints."""


@dataclass(frozen=True)
class Function:
    """A built function and its layers."""

    name: str
    directory: Path
    layers: tuple[Path, ...]
    handler: str
    timeout: int
    memory: int
    environment: dict[str, str]
    """Every variable that the template declares, with the parameters' defaults."""

    @property
    def megabytes(self) -> dict[str, float]:
        """The unzipped size of each part."""
        return {path.name: _bytes(path) / MEGABYTE for path in (self.directory, *self.layers)}


def functions() -> dict[str, Function]:
    """Return the built functions by their name in the template. Raises ArtifactError when none was built."""
    template = BUILD / "template.yaml"
    if not template.exists():
        raise ArtifactError("There is no built artifact: run `make build`.")
    document: dict[str, Any] = yaml_parse(template.read_text())
    return {function.name: function for function in _functions(document)}


def _functions(document: dict[str, Any]) -> Iterator[Function]:
    usual, resources = document["Globals"]["Function"], document["Resources"]
    for name, resource in resources.items():
        if resource["Type"] != "AWS::Serverless::Function":
            continue
        own = resource["Properties"]
        variables = usual["Environment"]["Variables"] | own["Environment"]["Variables"]
        yield Function(
            name=name,
            directory=BUILD / own["CodeUri"],
            layers=tuple(BUILD / resources[layer["Ref"]]["Properties"]["ContentUri"] for layer in usual["Layers"]),
            handler=own["Handler"],
            timeout=int(_value(own.get("Timeout", usual["Timeout"]), document)),
            memory=int(_value(usual["MemorySize"], document)),
            environment={variable: str(_value(value, document)) for variable, value in variables.items()},
        )


def _value(value: Any, document: dict[str, Any]) -> Any:
    """Return the value with each parameter's default in place of its name, or "" if it has none."""
    match value:
        case {"Ref": parameter}:
            return document["Parameters"].get(parameter, {}).get("Default", "")
        case {"Fn::Sub": text}:
            return re.sub(r"\$\{(\w+)\}", lambda found: str(_value({"Ref": found[1]}, document)), text)
        case _:
            return value


def _bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def main() -> int:
    """Print the size of each function with its layers. The exit code is 1 when one is too large."""
    for function in functions().values():
        parts = function.megabytes
        total = sum(parts.values())
        listed = " + ".join(f"{name} {megabytes:.1f}" for name, megabytes in parts.items())
        print(f"{function.name:<18}{total:6.1f} MB unzipped of {LIMIT_MB} ({listed})")
        if total > LIMIT_MB:
            print(f"{function.name} is too large: Lambda refuses {LAMBDA_LIMIT_MB} MB.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
