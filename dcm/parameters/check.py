"""Types of parameters, and how a refusal reads."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcm.solvers import SOLVERS
from dcm.support.errors import InputError
from dcm.support.files import ROOT, project_path


def between(least: int, most: int) -> Any:
    """Bounds of a whole number; they keep what no machine could hold from being tried."""
    return Field(ge=least, le=most, description=f"a whole number, at least {least} and at most {most}")


def _readable(value: float) -> float:
    """Guidance scales name rows and files by their first six digits, so they must have no more."""
    if float(f"{value:g}") != value:
        raise ValueError
    return value


def _folder(path: str) -> str:
    """A path in its shortest spelling, when Snakemake and every file system can take it."""
    parts = PurePosixPath(path).parts
    if not all(c.isprintable() and c not in "{}*?" for c in path) or path.startswith("//"):
        raise ValueError
    if any(part != part.strip() or len(part.encode()) > 200 for part in parts) or len(path.encode()) > 1000:
        raise ValueError
    return str(PurePosixPath(path))


def _writable(path: str) -> str:
    """The first folder on the way that exists can be written; and it is not the repository, whose files it would replace."""
    folder = project_path(path).resolve()
    if folder == ROOT or folder in ROOT.parents:
        raise ValueError
    there = next(f for f in (folder, *folder.parents) if f.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ValueError
    return path


def _solver(name: str) -> str:
    """One of those that there are."""
    if name not in SOLVERS:
        raise ValueError
    return name


Count = Annotated[int, between(1, 10**9)]
Whole = Annotated[int, between(0, 10**9)]
Seed = Annotated[int, between(0, 2**32 - 1)]
Batch = Annotated[int, between(1, 65536)]
Samples = Annotated[int, between(16, 100_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
Rate = Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]
Guidance = Annotated[
    list[Annotated[float, Field(ge=0, le=1000), AfterValidator(_readable)]],
    Field(min_length=1, description="a list of numbers, at least 0 and at most 1000, of at most six digits"),
]

Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$", description="a name of letters, digits, '.', '_' and '-'")
]

Folder = Annotated[
    str,
    AfterValidator(_folder),
    Field(min_length=1, description="a folder's path of printable characters other than { } * ?, no part above 200"),
]

NewFolder = Annotated[
    Folder,
    AfterValidator(_writable),
    Field(description="the path of a folder that can be written, in printable characters other than { } * ?"),
]
SolverName = Annotated[str, AfterValidator(_solver), Field(description=f"one of {', '.join(SOLVERS)}")]
Source = Annotated[str, Field(min_length=1, description="a folder's or file's path, or a name on the hub")]
StudyName = Annotated[
    Literal["gmm", "digits", "cifar10", "sdxl"], Field(description="one of gmm, digits, cifar10, sdxl")
]
Horizon = Annotated[
    int | Literal["cm", "direct"], Field(description="'cm', 'direct' or whole numbers from 1 to intervals")
]
Part = Annotated[dict, Field(description="a mapping of names to values")]


class Parameters(BaseModel):
    """Base of all parameter sets: no unknown names, no silent conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="after")
    def _each_once(self):
        for name, value in self:
            if isinstance(value, list) and len(set(value)) < len(value):
                raise InputError(f"{name} = {shown(value)} names one value twice; allowed: each value once.")
        return self


P = TypeVar("P", bound=Parameters)
# Names that parameters had in configurations and results of before.
RENAMED = {"together": "updates_per_solve", "slots": "solves_in_flight", "reuse": "pairs_per_trajectory"}


def renamed(values: dict) -> dict:
    """`values` under today's names."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


def validate(model: type[P], values: dict) -> P:
    """`values` as `model`; raises :class:`InputError`, one sentence about the first thing that is wrong."""
    values = renamed(values)
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
        if first["type"] == "missing":
            raise InputError(f"{name} is missing; it must be {_allowed(model, name)}.") from None
        raise refusal(name, values[name], _allowed(model, name)) from None


def _allowed(model: type[Parameters], name: str) -> str:
    return model.model_fields[name].description or f"a value of type {model.model_fields[name].annotation}"


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
