"""Parameters of the notebooks and of a whole study, validated before any work starts.

papermill only warns about an unknown parameter and accepts a wrong type, so every notebook's first cell hands its
namespace to :func:`check`. Each field's description says what is allowed; it becomes the error's last words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcm.errors import InputError
from dcm.schedule import Grid
from dcm.solvers import SOLVERS

Count = Annotated[int, Field(ge=1, description="a whole number, at least 1")]
Whole = Annotated[int, Field(ge=0, description="a whole number, at least 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number, at least 0")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", description="a name of letters, digits, '.', '_' and '-'")]
Source = Annotated[str, Field(min_length=1, description="a folder's or file's path, or a name on the hub")]
SolverName = Annotated[Literal[tuple(SOLVERS)], Field(description=f"one of {', '.join(SOLVERS)}")]
StudyName = Annotated[
    Literal["gmm", "digits", "cifar10", "sdxl"], Field(description="one of gmm, digits, cifar10, sdxl")
]
Horizon = Annotated[
    int | Literal["cm", "direct"], Field(description="'cm', 'direct' or whole numbers from 1 to intervals")
]


class Parameters(BaseModel):
    """Base of all parameter sets: no unknown names, no silent conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Common(Parameters):
    """What every notebook needs to know."""

    study: StudyName
    run_dir: Annotated[str, Field(min_length=1, description="a folder's path")]
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="one of auto, cpu, cuda")] = "auto"
    threads: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 1


class TeacherParameters(Common):
    """Notebook 1."""

    seed: Whole = 0
    samples: Count = 1024
    guidance: Annotated[list[NonNegative], Field(min_length=1, description="a list of numbers, at least 0")]
    intervals: Annotated[list[Count], Field(min_length=1, description="a list of whole numbers that divide 1000")]
    updates: Whole = 0
    batch: Count = 128
    lr: Positive = 1e-3
    data: Annotated[
        Literal["builtin", "cifar10", "folder", "teacher"],
        Field(description="one of builtin, cifar10, folder, teacher"),
    ] = "builtin"
    data_dir: Annotated[str, Field(min_length=1, description="a folder's path")] = "data"
    download: Annotated[bool, Field(description="true or false")] = False
    teacher_images: Count = 10000
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
        if self.study == "gmm" and (self.updates or self.data != "builtin"):
            raise InputError("the gmm study's teacher is exact: allowed for it are updates = 0 and data = 'builtin'.")
        if self.dry_run and self.study != "sdxl":
            raise InputError(f"dry_run = True is not possible for the study {self.study}; allowed: sdxl.")
        if self.study == "sdxl" and self.data != "folder":
            raise InputError(f"data = {self.data!r} is not possible for the study sdxl; allowed: folder.")
        return self


class GroupParameters(Parameters):
    """One group of students: all combinations of guidance, horizons and seeds on one solver and grid."""

    solver: SolverName
    intervals: Count
    guidance: Annotated[list[NonNegative], Field(min_length=1, description="a list of numbers, at least 0")]
    horizons: Annotated[
        list[Horizon], Field(min_length=1, description="a list of 'cm', 'direct' or whole numbers from 1 to intervals")
    ]
    seeds: Annotated[list[Whole], Field(min_length=1, description="a list of whole numbers, at least 0")]

    @model_validator(mode="after")
    def _possible(self):
        from dcm.distill import resolve_horizon

        Grid(self.intervals)
        horizons = [resolve_horizon(h, self.intervals) for h in self.horizons]
        for name, values in (("horizons", horizons), ("guidance", self.guidance), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise InputError(f"{name} = {values} names one value twice; allowed: each value once.")
        return self

    def group(self):
        """The :class:`dcm.distill.Group` it describes."""
        from dcm.distill import Group, resolve_horizon

        horizons = tuple(resolve_horizon(h, self.intervals) for h in self.horizons)
        return Group(self.solver, self.intervals, tuple(map(float, self.guidance)), horizons, tuple(self.seeds))


class TrainingParameters(Parameters):
    """How students train; see :class:`dcm.distill.Settings`."""

    updates: Count
    batch: Count
    lr: Positive = 1e-4
    lr_decay: Annotated[Literal["constant", "linear"], Field(description="one of constant, linear")] = "constant"
    weight_decay: NonNegative = 1e-2
    max_norm: Positive = 1.0
    loss: Annotated[Literal["l2", "huber"], Field(description="one of l2, huber")] = "l2"
    ema: Annotated[float, Field(ge=0, lt=1, description="a number from 0 (off) to below 1")] = 0.0
    together: Count = 1
    optimizer: Annotated[Literal["adamw", "adamw8bit"], Field(description="one of adamw, adamw8bit")] = "adamw"
    pretrain: Whole = 0
    width: Count = 64
    snapshots: Whole = 0
    checkpoint_seconds: Positive = 60.0
    gradient_checkpointing: Annotated[bool, Field(description="true or false")] = True
    microbatch: Whole = 0
    processes: Count = 1

    def settings(self):
        """The :class:`dcm.distill.Settings` among them."""
        from dataclasses import fields

        from dcm.distill import Settings

        return Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)})


class DistillParameters(Common, GroupParameters, TrainingParameters):
    """Notebook 2."""

    group_name: Name


class EvaluationParameters(Parameters):
    """The evaluation set that notebooks 3 and 4 share."""

    samples: Annotated[int, Field(ge=16, description="a whole number, at least 16")]
    seed: Whole = 0
    steps: Annotated[
        list[Annotated[int, Field(ge=1, le=1000)]],
        Field(min_length=1, description="a list of whole numbers from 1 to 1000"),
    ]


class ODEErrorParameters(Common, EvaluationParameters):
    """Notebook 3."""

    groups: Annotated[list[Name], Field(min_length=1, description="a list of names of distilled groups")]
    start_times: Count = 10
    start_samples: Annotated[int, Field(ge=16, description="a whole number, at least 16")] = 512
    main_group: Name = "main"


class QualityParameters(Common, EvaluationParameters):
    """Notebook 4."""

    groups: Annotated[list[Name], Field(min_length=1, description="a list of names of distilled groups")]
    main_group: Name = "main"


class FigureParameters(Common):
    """Notebook 5."""

    results_dir: Annotated[str, Field(min_length=1, description="a folder's path")]
    main_group: Name = "main"
    bootstrap: Annotated[int, Field(ge=100, description="a whole number, at least 100")] = 10000
    confidence: Annotated[float, Field(gt=0.5, lt=1, description="a number between 0.5 and 1")] = 0.95


class StudyConfig(Parameters):
    """A whole study, as ``workflow/config/*.yaml`` names it: parameters by notebook, and the groups to distil."""

    study: StudyName
    run_dir: str
    results_dir: str
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="one of auto, cpu, cuda")] = "auto"
    threads: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 1
    main_group: Name = "main"
    teacher: dict
    training: dict
    groups: Annotated[dict[Name, dict], Field(min_length=1, description="named groups of students")]
    evaluation: dict
    ode_error: dict = {}
    figures: dict = {}

    @model_validator(mode="after")
    def _parts(self):
        if self.main_group not in self.groups:
            raise InputError(f"main_group = {self.main_group!r} is not a group; allowed: {', '.join(self.groups)}.")
        for notebook, model in NOTEBOOKS.items():
            for name in self.groups if notebook == "2_distill" else [None]:
                validate(model, self.notebook(notebook, name))
        return self

    def notebook(self, notebook: str, group: str | None = None) -> dict:
        """The parameters of one notebook (of one group, for notebook 2), as papermill takes them."""
        common = dict(study=self.study, run_dir=self.run_dir, device=self.device, threads=self.threads)
        groups = dict(groups=list(self.groups), main_group=self.main_group)
        return {
            "1_teacher": lambda: common | self.teacher,
            "2_distill": lambda: common | {"group_name": group} | self.training | self.groups[group],
            "3_ode_error": lambda: common | groups | self.evaluation | self.ode_error,
            "4_sample_quality": lambda: common | groups | self.evaluation,
            "5_figures": lambda: common | dict(results_dir=self.results_dir, main_group=self.main_group) | self.figures,
        }[notebook]()


NOTEBOOKS = {
    "1_teacher": TeacherParameters,
    "2_distill": DistillParameters,
    "3_ode_error": ODEErrorParameters,
    "4_sample_quality": QualityParameters,
    "5_figures": FigureParameters,
}

P = TypeVar("P", bound=Parameters)


def validate(model: type[P], values: dict) -> P:
    """`values` as `model`; raises :class:`InputError`, one sentence about the first thing that is wrong."""
    unknown = [name for name in values if name not in model.model_fields]
    if unknown:
        allowed = ", ".join(model.model_fields)
        raise InputError(f"{unknown[0]} is not a parameter; allowed: {allowed}.")
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:  # from a model validator: it says all that needs saying
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise InputError(f"{name} is missing; it must be {_allowed(model, name)}.") from None
        raise InputError(f"{name} = {values[name]!r} is not possible; allowed: {_allowed(model, name)}.") from None


def _allowed(model: type[Parameters], name: str) -> str:
    return model.model_fields[name].description or f"a value of type {model.model_fields[name].annotation}"


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
        and isinstance(value, plain)
        and (first_time or name in model.model_fields)
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
