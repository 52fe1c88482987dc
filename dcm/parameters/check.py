"""Parameter sets, checked; and how a refusal reads."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dcm.support.errors import InputError


class Parameters(BaseModel):
    """Base of all parameter sets: no unknown names, no silent conversion but that one value stands for a list of one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list(cls, values: Any) -> Any:
        lists = {n for n, field in cls.model_fields.items() if get_origin(field.annotation) is list}
        return {n: [v] if n in lists and isinstance(v, int | float | str) else v for n, v in values.items()}

    @model_validator(mode="after")
    def _each_once(self):
        for name, value in self:
            if isinstance(value, list) and len(set(map(repr, value))) < len(value):
                raise InputError(f"{name} = {shown(value)} names one value twice; allowed: each value once.")
        return self


P = TypeVar("P", bound=Parameters)
# Names that parameters had in what results/regimes* are of.
RENAMED = {"together": "updates_per_solve", "slots": "solves_in_flight", "reuse": "pairs_per_trajectory"}


def validate(model: type[P], values: dict) -> P:
    """`values` as `model`; raises :class:`InputError`, one sentence about the first thing that is wrong."""
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    unknown = [name for name in values if name not in model.model_fields]
    if unknown:
        allowed = ", ".join(model.model_fields)
        name = unknown[0] if isinstance(unknown[0], str) and unknown[0].isidentifier() else shown(unknown[0])
        raise InputError(f"{name} is not a parameter; allowed: {allowed}.")
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:  # from a model validator: it says all that needs saying
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0])
        field = model.model_fields[name]
        allowed = field.description or f"a value of type {field.annotation}"
        if first["type"] == "missing":
            raise InputError(f"{name} is missing; it must be {allowed}.") from None
        raise refusal(name, values[name], allowed) from None


@contextmanager
def within(part: str) -> Iterator[None]:
    """Say in which part of a configuration a parameter is refused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"in {part}: {error}") from None


def shown(value) -> str:
    """A value as a message shows it: on one line, not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def refusal(name: str, value, allowed: str, why: str = "") -> InputError:
    """The one sentence that says what is wrong and what is allowed."""
    hint = ""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        hint = " (YAML takes it for text: write 1.0e-4, not 1e-4)"
    return InputError(f"{name} = {shown(value)} is not possible{why}; allowed: {allowed}{hint}.")
