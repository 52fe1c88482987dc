"""Kinds of parameters: their types, bounds, and what a refusal says is allowed."""

from __future__ import annotations

import os
import tempfile
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from dcm.parameters.used import STUDIES
from dcm.solvers import SOLVERS
from dcm.support.files import ROOT, project_path

# Folders of the repository that hold what it is made of.
OWN_FOLDERS = (".ci", ".git", ".github", "benchmarks", "dcm", "docs", "notebooks", "tests", "weights", "workflow")


def between(least: int, most: int) -> Any:
    """Bounds of a whole number; they keep what no machine could hold from being tried."""
    return Field(ge=least, le=most, description=f"a whole number, at least {least} and at most {most}")


def one_of(*names: str) -> Any:
    """Bounds of a text that is one of some names."""
    return Field(pattern=f"^({'|'.join(names)})$", description=f"one of {', '.join(names)}")


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
    """A folder can be made there, and nothing of the repository's own lies in its way."""
    folder = project_path(path).resolve()
    if folder == ROOT or folder in ROOT.parents:
        raise ValueError
    if folder.is_relative_to(ROOT) and folder.relative_to(ROOT).parts[0] in OWN_FOLDERS:
        raise ValueError
    there = next(f for f in (folder, *folder.parents) if f.exists())
    try:
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError
        os.rmdir(tempfile.mkdtemp(prefix=".dcm-", dir=there))  # in /proc, say, what root may write cannot be written
    except OSError:
        raise ValueError from None
    return path


Count = Annotated[int, between(1, 10**9)]
Whole = Annotated[int, between(0, 10**9)]
Seed = Annotated[int, between(0, 2**32 - 1)]
Batch = Annotated[int, between(1, 65536)]
Samples = Annotated[int, between(16, 100_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
Rate = Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]
Flag = Annotated[bool, Field(description="true or false")]
Device = Annotated[str, one_of("auto", "cpu", "cuda")]
Threads = Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")]
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
    Field(
        description="the path of a folder that can be written, none of the repository's own code, in printable characters "
        "other than { } * ?"
    ),
]
SolverName = Annotated[str, one_of(*SOLVERS)]
StudyName = Annotated[str, one_of(*STUDIES)]
Source = Annotated[str, Field(min_length=1, description="a folder's or file's path, or a name on the hub")]
HORIZON = (
    "'cm', 'direct', a whole number up to intervals, 'direct>cm' and the like, 'anneal', or [share, horizon] pairs"
)
Horizon = Annotated[int | str | list[list[int | float | str]], Field(description=HORIZON)]
Part = Annotated[dict, Field(description="a mapping of names to values")]
