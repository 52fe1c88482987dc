"""Kinds of parameters: their types, bounds, what a refusal says is allowed, and which of them a study uses."""

import os
import tempfile
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple

from annotated_types import Predicate
from pydantic import AfterValidator, Field

from dcm.solvers import SOLVERS
from dcm.support.files import ROOT, project_path

# Folders of the repository that hold what it is made of.
OWN_FOLDERS = (".ci", ".git", ".github", "benchmarks", "dcm", "docs", "notebooks", "tests", "weights", "workflow")


class Used(NamedTuple):
    """What one study alone uses of the parameters of notebooks 1 and 2, and where its training `data` may come from."""

    teacher: frozenset[str]
    training: frozenset[str]
    data: tuple[str, ...] = ("builtin",)


_NETWORK = frozenset("pretrain lora_rank compiled teacher_precision".split())
_TRAINED = frozenset("seed updates batch lr".split())
_ELSEWHERE = frozenset("data data_dir download inception".split())
STUDIES = {  # a parameter that stands nowhere here is for every study
    "gmm": Used(frozenset({"dimension", "modes"}), frozenset({"pretrain", "width"})),
    "digits": Used(_TRAINED, _NETWORK),
    "cifar10": Used(_TRAINED | _ELSEWHERE | {"teacher_images"}, _NETWORK, ("cifar10", "folder", "teacher")),
    "diffusers": Used(
        _ELSEWHERE | {"teacher_images", "model", "null_class"}, _NETWORK, ("cifar10", "folder", "teacher"),
    ),
    "sdxl": Used(
        _ELSEWHERE | set("teacher_images seed batch model vae resolution flip precision clip dino aesthetic encoder classifier".split()),
        frozenset("width lora_rank gradient_checkpointing microbatch teacher_precision".split()),
        ("folder", "teacher"),
    ),
}


def between(least: int, most: int) -> Any:
    """Bounds of a whole number; they keep what no machine could hold from being tried."""
    return Field(ge=least, le=most, description=f"a whole number, at least {least} and at most {most}")


def one_of(*names: str) -> Any:
    """Bounds of a text that is one of some names."""
    return Field(pattern=f"^({'|'.join(names)})$", description=f"one of {', '.join(names)}")


def _folder(path: str) -> str:
    """A path in its shortest spelling, when Snakemake and every file system can take it."""
    parts, printable = PurePosixPath(path).parts, all(c.isprintable() and c not in "{}*?" for c in path)
    short = len(path.encode()) <= 1000 and all(part == part.strip() and len(part.encode()) <= 200 for part in parts)
    if not printable or not short or path.startswith("//"):
        raise ValueError
    return str(PurePosixPath(path))


def _writable(path: str) -> bool:
    """Whether a folder can be made there, and nothing of the repository's own lies in its way."""
    folder = project_path(path).resolve()
    if ROOT.is_relative_to(folder) or any(folder.is_relative_to(ROOT / own) for own in OWN_FOLDERS):
        return False
    there = next(f for f in (folder, *folder.parents) if f.exists())
    try:  # in /proc, say, what root may write cannot be written
        os.rmdir(tempfile.mkdtemp(prefix=".dcm-", dir=there))
    except OSError:
        return False
    return True


Count = Annotated[int, between(1, 10**9)]
Whole = Annotated[int, between(0, 10**9)]
Seed = Annotated[int, between(0, 2**32 - 1)]
Batch = Annotated[int, between(1, 65536)]
Samples = Annotated[int, between(16, 100_000)]
Threads = Annotated[int, between(1, 256)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
Rate = Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]
Flag = Annotated[bool, Field(description="true or false")]
Device = Annotated[str, one_of("auto", "cpu", "cuda")]
# Guidance scales name rows and files by their first six digits, so they must have no more.
Guidance = Annotated[
    list[Annotated[float, Field(ge=0, le=1000), Predicate(lambda w: float(f"{w:g}") == w)]],
    Field(min_length=1, description="a list of numbers, at least 0 and at most 1000, of at most six digits"),
]
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME, description="a name of letters, digits, '.', '_' and '-'")]
FOLDER = "a folder's path of printable characters other than { } * ?, no part above 200"
Folder = Annotated[str, AfterValidator(_folder), Field(min_length=1, description=FOLDER)]
NEW = "the path of a folder that can be written, none of the repository's own, in printable characters other than { } * ?"
NewFolder = Annotated[Folder, Predicate(_writable), Field(description=NEW)]
SolverName = Annotated[str, one_of(*SOLVERS)]
StudyName = Annotated[str, one_of(*STUDIES)]
Source = Annotated[str, Field(min_length=1, description="a folder's or file's path, or a name on the hub")]
HORIZON = "'cm', 'direct', a whole number up to intervals, 'direct>cm' and the like, 'anneal', or [share, horizon] pairs"
Horizon = Annotated[int | str | list[list[int | float | str]], Field(description=HORIZON)]
Part = Annotated[dict, Field(description="a mapping of names to values")]
