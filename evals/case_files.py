"""Load the cases from their YAML files, and check them: a fault names the file, the case and the field."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from evals import domain
from evals.dates import Clock, When, render
from taskchat.timezones import check_timezone

DIRECTORY: Final = Path(__file__).with_name("cases")


class CaseError(Exception):
    """Raised for a file that holds no valid cases. Names the file, the case and the field."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Limits(_Strict):
    """Limits on the tool calls of the last turn."""

    most: int | None = Field(default=None, ge=0)
    never: list[str] = Field(default_factory=list)
    needs: list[str] = Field(default_factory=list)


class Reply(_Strict):
    """Texts that the last reply must name, such as titles, and texts that it must not."""

    names: list[str] = Field(default_factory=list)
    omits: list[str] = Field(default_factory=list)


class Case(_Strict):
    """What exists, what a person writes, and how it must be afterwards."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    say: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
    """The messages of one conversation."""
    before: list[domain.Thing] = Field(default_factory=list)
    timezone: str = "UTC"
    expect: Annotated[list[domain.Effects], BeforeValidator(_as_list), Field(min_length=1)] = Field(
        default_factory=lambda: [domain.Effects()]
    )
    """Alternatives: one of them must hold after the last turn."""
    calls: Limits = Field(default_factory=Limits)
    reply: Reply = Field(default_factory=Reply)
    category: str = ""

    @property
    def id(self) -> str:
        """Return the name that is unique among all cases."""
        return f"{self.category}/{self.name}"

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, name: str) -> str:
        return check_timezone(name)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        domain.check(self.before, self.expect)
        clock = Clock.read(self.timezone)
        for message in self.say:
            render(message, clock)
        for due in itertools.chain(domain.dues(self.before), *(effects.dues for effects in self.expect)):
            When.parse(due, clock)
        return self


def load(directory: Path = DIRECTORY, only: Iterable[str] = ()) -> list[Case]:
    """Return all cases, or those of the categories or cases that `only` names. Raises CaseError."""
    wanted = list(only)
    files = sorted(directory.glob("*.yaml"))
    cases = [case for path in files for case in read_file(path)]
    known = {case.category for case in cases} | {case.id for case in cases}
    if unknown := [name for name in wanted if name not in known]:
        categories = ", ".join(sorted({case.category for case in cases}))
        raise CaseError(f"There is no category or case {unknown[0]!r}. The categories are: {categories}.")
    if not cases:
        raise CaseError(f"There are no cases in {directory}.")
    return [case for case in cases if not wanted or {case.category, case.id} & set(wanted)]


def read_file(path: Path) -> list[Case]:
    """Return the cases of a file. Its name is their category. Raises CaseError."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise CaseError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list) or content.keys() - _KEYS:
        raise CaseError(f"{path.name} must be a mapping with `cases`, a list, and perhaps `shared`.")
    cases = [_read_case(path, number, each) for number, each in enumerate(content["cases"], 1)]
    names = [case.name for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise CaseError(f"{path.name} has two cases {sorted(twice)[0]!r}.")
    return cases


_KEYS: Final = {"cases", "shared"}


def _read_case(path: Path, number: int, value: Any) -> Case:
    name = value.get("name") if isinstance(value, dict) else None
    place = f"{path.name}, case {name or number}"
    if not isinstance(value, dict):
        raise CaseError(f"{place}: it is not a mapping.")
    try:
        return Case.model_validate(value | {"category": path.stem})
    except ValidationError as error:
        raise CaseError("\n".join(f"{place}: {line}" for line in _lines(error))) from None


def _lines(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        field = ".".join(map(str, fault["loc"]))
        yield f"{field}: {fault['msg']}" if field else str(fault["msg"])
