"""Parameters of the notebooks and of a whole study, validated before any work starts.

papermill only warns about an unknown parameter and accepts a wrong type, so every notebook's first cell hands its
namespace to :func:`check`. Each field's description says what is allowed; it becomes the error's last words.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcm.artifacts import ROOT, project_path
from dcm.errors import InputError
from dcm.schedule import Grid
from dcm.solvers import SOLVERS


def _between(least: int, most: int) -> Any:
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


Count = Annotated[int, _between(1, 10**9)]
Whole = Annotated[int, _between(0, 10**9)]
Seed = Annotated[int, _between(0, 2**32 - 1)]
Batch = Annotated[int, _between(1, 65536)]
Samples = Annotated[int, _between(16, 100_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
Rate = Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]
Guidance = Annotated[
    list[Annotated[float, Field(ge=0, le=1000), AfterValidator(_readable)]],
    Field(min_length=1, description="a list of numbers, at least 0 and at most 1000, of at most six digits"),
]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$", description="a name of letters, digits, '.', '_' and '-'"),
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


class Common(Parameters):
    """What every notebook needs to know."""

    study: StudyName
    run_dir: NewFolder
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="one of auto, cpu, cuda")] = "auto"
    threads: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 1


class TeacherParameters(Common):
    """Notebook 1."""

    seed: Seed = 0
    samples: Annotated[int, _between(1, 100_000)] = 1024
    guidance: Guidance
    intervals: Annotated[list[Count], Field(min_length=1, description="a list of whole numbers that divide 1000")]
    dimension: Annotated[int, _between(2, 256)] = 2
    modes: Annotated[int, _between(1, 256)] = 3
    updates: Whole = 0
    batch: Batch = 128
    lr: Rate = 1e-3
    data: Annotated[
        Literal["builtin", "cifar10", "folder", "teacher"],
        Field(description="one of builtin, cifar10, folder, teacher"),
    ] = "builtin"
    data_dir: Folder = "data"
    download: Annotated[bool, Field(description="true or false")] = False
    teacher_images: Annotated[int, _between(1, 1_000_000)] = 10000
    inception: Annotated[Literal["off", "local", "download"], Field(description="one of off, local, download")] = "off"
    model: Source = "stabilityai/stable-diffusion-xl-base-1.0"
    vae: Source = "of the model"
    resolution: Annotated[int, Field(ge=8, multiple_of=8, description="a whole number, a multiple of 8")] = 1024
    flip: Annotated[bool, Field(description="true or false")] = False
    precision: Annotated[Literal["bf16", "fp16", "fp32"], Field(description="one of bf16, fp16, fp32")] = "bf16"
    clip: Source = "openai/clip-vit-large-patch14"
    dino: Source = "facebook/dinov2-large"
    aesthetic: Source = "data/aesthetic.safetensors"
    dry_run: Annotated[bool, Field(description="true or false")] = False

    @model_validator(mode="after")
    def _grid(self):
        for n in self.intervals:
            Grid(n)
        if self.study == "gmm" and self.updates:
            raise _refusal("updates", self.updates, "0", " for the study gmm, whose teacher is exact")
        if self.study != "gmm" and (self.dimension, self.modes) != (2, 3):
            name, value = ("dimension", 2) if self.dimension != 2 else ("modes", 3)
            raise _refusal(
                name, getattr(self, name), f"{value}", f" for the study {self.study}, which has its own data"
            )
        if self.dry_run and self.study != "sdxl":
            raise _refusal("dry_run", self.dry_run, "true for the study sdxl", f" for the study {self.study}")
        images = {"cifar10": ("cifar10", "folder", "teacher"), "sdxl": ("folder",)}
        sources = images.get(self.study, ("builtin",))
        if self.data not in sources:
            raise _refusal("data", self.data, ", ".join(sources), f" for the study {self.study}")
        if self.data == "teacher" and self.updates:
            raise _refusal(
                "data", self.data, "cifar10, folder", " with updates above 0: a teacher needs images to train on"
            )
        return self


class GroupParameters(Parameters):
    """One group of students: all combinations of guidance, horizons and seeds on one solver and grid."""

    solver: SolverName
    intervals: Count
    guidance: Guidance
    horizons: Annotated[
        list[Horizon], Field(min_length=1, description="a list of 'cm', 'direct' or whole numbers from 1 to intervals")
    ]
    seeds: Annotated[list[Seed], Field(min_length=1, description="a list of whole numbers from 0 to 4294967295")]

    @model_validator(mode="after")
    def _possible(self):
        from dcm.distill import resolve_horizon

        Grid(self.intervals)
        horizons = [resolve_horizon(h, self.intervals) for h in self.horizons]
        if len(set(horizons)) < len(horizons):
            raise InputError(f"horizons = {shown(self.horizons)} names one value twice; allowed: each value once.")
        return self

    def group(self):
        """The :class:`dcm.distill.Group` it describes."""
        from dcm.distill import Group, resolve_horizon

        horizons = tuple(resolve_horizon(h, self.intervals) for h in self.horizons)
        return Group(self.solver, self.intervals, tuple(map(float, self.guidance)), horizons, tuple(self.seeds))


class TrainingParameters(Parameters):
    """How students train; see :class:`dcm.distill.Settings`."""

    updates: Count
    batch: Batch
    lr: Rate = 1e-4
    lr_decay: Annotated[Literal["constant", "linear"], Field(description="one of constant, linear")] = "constant"
    weight_decay: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")] = 1e-2
    max_norm: Positive = 1.0
    loss: Annotated[Literal["l2", "huber"], Field(description="one of l2, huber")] = "l2"
    ema: Annotated[float, Field(ge=0, lt=1, description="a number from 0 (off) to below 1")] = 0.0
    together: Annotated[int, _between(1, 1024)] = 1
    slots: Annotated[int, _between(0, 65536)] = 0
    reuse: Annotated[int, _between(1, 1000)] = 1
    optimizer: Annotated[Literal["adamw", "adamw8bit"], Field(description="one of adamw, adamw8bit")] = "adamw"
    pretrain: Whole = 0
    width: Annotated[int, _between(1, 4096)] = 64
    lora_rank: Annotated[int, _between(0, 4096)] = 0
    snapshots: Annotated[int, _between(0, 1000)] = 0
    checkpoint_seconds: Positive = 60.0
    gradient_checkpointing: Annotated[bool, Field(description="true or false")] = True
    microbatch: Whole = 0
    compiled: Annotated[bool, Field(description="true or false")] = False
    teacher_precision: Annotated[Literal["auto", "fp8"], Field(description="one of auto, fp8")] = "auto"
    processes: Count = 1

    def settings(self):
        """The :class:`dcm.distill.Settings` among them."""
        from dataclasses import fields

        from dcm.distill import Settings

        return Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)})


class DistillParameters(Common, GroupParameters, TrainingParameters):
    """Notebook 2."""

    group_name: Name

    @model_validator(mode="after")
    def _reusable(self):
        allowed = [r for r in range(1, min(self.batch, self.intervals) + 1) if self.batch % r == 0]
        if self.reuse not in allowed:
            raise _refusal("reuse", self.reuse, f"divisors of batch = {self.batch} up to intervals = {self.intervals}")
        if self.reuse > 1 and self.slots:
            raise _refusal("slots", self.slots, "0 with reuse above 1, whose solves all last equally long")
        return self

    @model_validator(mode="after")
    def _adaptable(self):
        if self.lora_rank and self.study not in ("digits", "cifar10"):
            other = ", whose students are adapters of rank width" if self.study == "sdxl" else ""
            raise _refusal("lora_rank", self.lora_rank, "0", f" for the study {self.study}{other}")
        if self.lora_rank and not self.pretrain:
            raise _refusal("pretrain", 0, "1 with lora_rank above 0: an adapter needs the teacher below it")
        return self


def _with_one(steps: list[int]) -> list[int]:
    """Verdicts and most figures are about one-step samples."""
    if 1 not in steps:
        raise ValueError
    return steps


def _check_apart(parameters):
    """Both folders have files of the same names."""
    if project_path(parameters.results_dir).resolve() == project_path(parameters.run_dir).resolve():
        raise _refusal("results_dir", parameters.results_dir, "a folder other than run_dir")
    return parameters


class EvaluationParameters(Parameters):
    """The evaluation set that notebooks 3 and 4 share."""

    samples: Samples
    seed: Seed = 0
    steps: Annotated[
        list[Annotated[int, Field(ge=1, le=1000)]],
        AfterValidator(_with_one),
        Field(description="a list of whole numbers from 1 to 1000, 1 among them"),
    ]
    groups: Annotated[list[Name], Field(min_length=1, description="a list of names of distilled groups")]
    main_group: Name = "main"

    @model_validator(mode="after")
    def _main_is_one_of_them(self):
        if self.main_group not in self.groups:
            raise _refusal("main_group", self.main_group, ", ".join(self.groups))
        return self


class ODEErrorParameters(Common, EvaluationParameters):
    """Notebook 3."""

    start_times: Annotated[int, _between(1, 1000)] = 10
    start_samples: Samples = 512


class QualityParameters(Common, EvaluationParameters):
    """Notebook 4."""


class FigureParameters(Common):
    """Notebook 5."""

    results_dir: NewFolder
    main_group: Name = "main"
    bootstrap: Annotated[int, _between(100, 100_000)] = 10000
    confidence: Annotated[float, Field(gt=0.5, lt=1, description="a number between 0.5 and 1")] = 0.95

    @model_validator(mode="after")
    def _apart(self):
        return _check_apart(self)


def check_ends(name: str, group: dict) -> None:
    """Raise :class:`InputError` unless a main group has both ends of the horizon, which most figures compare.

    `group` has ``intervals`` and ``horizons``.
    """
    ends = {"cm": 1, "direct": group["intervals"]}
    horizons = [ends.get(h, h) for h in group["horizons"]]
    if group["intervals"] == 1:
        raise _refusal("intervals", 1, "numbers of intervals from 2 on", f" for the main group {name}")
    if not {1, group["intervals"]} <= set(horizons):
        raise _refusal(
            "horizons", list(group["horizons"]), "lists with both 'cm' and 'direct'", f" for the main group {name}"
        )


class StudyConfig(Parameters):
    """A whole study, as ``workflow/config/*.yaml`` names it: parameters by notebook, and the groups to distil."""

    study: StudyName
    run_dir: NewFolder
    results_dir: NewFolder
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="one of auto, cpu, cuda")] = "auto"
    threads: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 1
    main_group: Name = "main"
    teacher: Part
    training: Part
    groups: Annotated[dict[Name, Part], Field(min_length=1, description="names of groups with their parameters")]
    evaluation: Part
    ode_error: Part = {}
    figures: Part = {}

    @model_validator(mode="after")
    def _parts(self):
        if self.main_group not in self.groups:
            raise InputError(f"main_group = {self.main_group!r} is not a group; allowed: {', '.join(self.groups)}.")
        _check_apart(self)
        for notebook in NOTEBOOKS:
            for name in self.groups if notebook == "2_distill" else [None]:
                self.notebook(notebook, name)
        check_ends(self.main_group, self.notebook("2_distill", self.main_group))
        return self

    @property
    def costliest_last(self) -> list[str]:
        """Names of the groups by what they cost to distil: network evaluations, passes of the students counted as four."""

        def cost(name: str) -> float:
            p = DistillParameters(**self.notebook("2_distill", name))
            longest = max(p.group().horizons)
            solved = [min(n, longest) for n in range(1, p.intervals + 1)] if p.reuse == 1 else [p.intervals / p.reuse]
            steps = sum(solved) / len(solved)
            scales = len(p.guidance) * len(p.seeds)
            solves = 2 * steps * SOLVERS[p.solver].evaluations  # both halves of the guidance
            return p.updates * p.batch * scales * (solves + 4 * len(p.horizons))

        return sorted(self.groups, key=cost)

    def notebook(self, notebook: str, group: str | None = None) -> dict:
        """All parameters of one notebook (of one group, for notebook 2), checked, as papermill takes them.

        What the configuration does not name has the default of the notebook's model in this module; the defaults
        in the notebook's own cell are for those who run it by hand.
        """
        common = dict(study=self.study, run_dir=self.run_dir, device=self.device, threads=self.threads)
        groups = dict(groups=list(self.groups), main_group=self.main_group)
        members = self.groups[group] if group else {}
        results = dict(results_dir=self.results_dir, main_group=self.main_group)
        parts: dict[str, tuple[dict, str, dict]] = {
            "1_teacher": ({}, "teacher", self.teacher),
            "2_distill": ({"group_name": group}, f"group {group}", self.training | members),
            "3_ode_error": (groups, "evaluation and ode_error", self.evaluation | self.ode_error),
            "4_sample_quality": (groups, "evaluation", self.evaluation),
            "5_figures": (results, "figures", self.figures),
        }
        (own, where, named), model = parts[notebook], NOTEBOOKS[notebook]
        taken = ({"study", "run_dir"} | set(own)) & set(named)  # named once, for the whole study
        if taken:
            allowed = ", ".join(n for n in model.model_fields if n not in {"study", "run_dir"} | set(own))
            raise InputError(f"in {where}: {min(taken)} is not a parameter; allowed: {allowed}.")
        try:
            return validate(model, common | own | named).model_dump()
        except InputError as error:
            raise InputError(f"in {where}: {error}") from None


NOTEBOOKS: dict[str, type[Parameters]] = {
    "1_teacher": TeacherParameters,
    "2_distill": DistillParameters,
    "3_ode_error": ODEErrorParameters,
    "4_sample_quality": QualityParameters,
    "5_figures": FigureParameters,
}


class RegimeParameters(Parameters):
    """Notebook 6, which joins several studies' runs."""

    runs: Annotated[
        list[Folder],
        Field(
            min_length=1, description="a list of run folders of notebooks 1 to 4, or of results folders of notebook 6"
        ),
    ]
    run_dir: NewFolder
    results_dir: NewFolder
    map_samples: Samples = 64
    probes: Annotated[int, _between(2, 256)] = 8
    bootstrap: Annotated[int, _between(100, 100_000)] = 10000
    confidence: Annotated[float, Field(gt=0.5, lt=1, description="a number between 0.5 and 1")] = 0.95
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="one of auto, cpu, cuda")] = "auto"
    threads: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 1

    @model_validator(mode="after")
    def _apart(self):
        return _check_apart(self)


class RegimesConfig(Parameters):
    """Studies whose regimes notebook 6 compares, as ``workflow/config/regimes*.yaml`` names them.

    ``studies`` has by name what a :class:`StudyConfig` has, without its folders; ``figures`` is notebook 6's.
    """

    run_dir: NewFolder
    results_dir: NewFolder
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="one of auto, cpu, cuda")] = "auto"
    threads: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 1
    studies: Annotated[dict[Name, Part], Field(min_length=1, description="names of studies with their configurations")]
    figures: Part = {}

    @model_validator(mode="after")
    def _parts(self):
        self.notebook()
        for name in self.studies:
            self.study(name)
        return self

    def study(self, name: str) -> dict:
        """The configuration of one study, checked, as ``workflow/Snakefile`` takes it."""
        own = self.studies[name]
        folders = dict(run_dir=f"{self.run_dir}/{name}", results_dir=f"{self.run_dir}/{name}/results")
        common = folders | dict(device=self.device, threads=self.threads)
        taken = sorted(set(common) & set(own))
        if taken:
            value = shown(own[taken[0]])
            raise InputError(
                f"in study {name}: {taken[0]} = {value} is given once for all studies; allowed: beside studies."
            )
        try:
            validate(StudyConfig, common | own)
        except InputError as error:
            raise InputError(f"in study {name}: {error}") from None
        return json.loads(json.dumps(common | own))  # plain, and sharing nothing with the other studies

    def notebook(self) -> dict:
        """Parameters of notebook 6, checked, as papermill takes them."""
        common = dict(run_dir=self.run_dir, results_dir=self.results_dir, device=self.device, threads=self.threads)
        runs = dict(runs=[f"{self.run_dir}/{name}" for name in self.studies])
        try:
            return validate(RegimeParameters, common | runs | self.figures).model_dump()
        except InputError as error:
            raise InputError(f"in figures: {error}") from None


# Of every notebook that there is; those of a study are NOTEBOOKS.
EVERY_NOTEBOOK: dict[str, type[Parameters]] = NOTEBOOKS | {"6_when_it_fails": RegimeParameters}

P = TypeVar("P", bound=Parameters)


def validate(model: type[P], values: dict) -> P:
    """`values` as `model`; raises :class:`InputError`, one sentence about the first thing that is wrong."""
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
        raise _refusal(name, values[name], _allowed(model, name)) from None


def _allowed(model: type[Parameters], name: str) -> str:
    return model.model_fields[name].description or f"a value of type {model.model_fields[name].annotation}"


def shown(value) -> str:
    """A value as a message shows it: on one line, not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def _refusal(name: str, value, allowed: str, why: str = "") -> InputError:
    hint = ""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        hint = " (YAML takes it for text: write 1.0e-4, not 1e-4)"
    return InputError(f"{name} = {shown(value)} is not possible{why}; allowed: {allowed}{hint}.")


def check(model: type[P], namespace: dict) -> P:
    """The parameters in a notebook's `namespace` (its ``globals()``), checked.

    Every plain value that the parameters cell or papermill set counts; a name that `model` does not know is refused.
    When the cell is run again in the same session, other variables of the notebook are left alone.

    Raises :class:`InputError`.
    """
    first_time = "_parameters_checked" not in namespace
    plain = (bool, int, float, str, list, dict, tuple, type(None))
    jupyter = {"In", "Out"}
    values = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in jupyter
        and (name in model.model_fields or (first_time and isinstance(value, plain)))
    }
    parameters = validate(model, values)
    namespace["_parameters_checked"] = True
    return parameters


def load_config(path: str | Path) -> StudyConfig:
    """A study's configuration from a YAML file; raises :class:`InputError`."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"the configuration {path} cannot be read: {str(error).splitlines()[0]}.") from None
    if not isinstance(values, dict):
        raise InputError(f"the configuration {path} must be a mapping of names to values.")
    return validate(StudyConfig, values)
