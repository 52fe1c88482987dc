"""The parameters of notebooks 1 to 5."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dcm.horizon import Group, resolve_horizon
from dcm.pairs import check_reuse
from dcm.parameters.check import (
    Batch,
    Count,
    Folder,
    Guidance,
    Horizon,
    Name,
    NewFolder,
    Parameters,
    Positive,
    Rate,
    Samples,
    Seed,
    SolverName,
    Source,
    StudyName,
    Whole,
    between,
    refusal,
    shown,
)
from dcm.schedule import Grid
from dcm.support.errors import InputError
from dcm.support.files import project_path


class Common(Parameters):
    """What every notebook needs to know."""

    study: StudyName
    run_dir: NewFolder
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="one of auto, cpu, cuda")] = "auto"
    threads: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 1


class TeacherParameters(Common):
    """Notebook 1."""

    seed: Seed = 0
    samples: Annotated[int, between(1, 100_000)] = 1024
    guidance: Guidance
    intervals: Annotated[list[Count], Field(min_length=1, description="a list of whole numbers that divide 1000")]
    dimension: Annotated[int, between(2, 256)] = 2
    modes: Annotated[int, between(1, 256)] = 3
    updates: Whole = 0
    batch: Batch = 128
    lr: Rate = 1e-3
    data: Annotated[
        Literal["builtin", "cifar10", "folder", "teacher"],
        Field(description="one of builtin, cifar10, folder, teacher"),
    ] = "builtin"
    data_dir: Folder = "data"
    download: Annotated[bool, Field(description="true or false")] = False
    teacher_images: Annotated[int, between(1, 1_000_000)] = 10000
    inception: Annotated[Literal["off", "local", "download"], Field(description="one of off, local, download")] = "off"
    model: Source = "stabilityai/stable-diffusion-xl-base-1.0"
    vae: Source = "of the model"
    resolution: Annotated[int, Field(ge=8, multiple_of=8, description="a whole number, a multiple of 8")] = 1024
    flip: Annotated[bool, Field(description="true or false")] = False
    precision: Annotated[Literal["bf16", "fp16", "fp32"], Field(description="one of bf16, fp16, fp32")] = "bf16"
    clip: Source = "openai/clip-vit-large-patch14"
    dino: Source = "facebook/dinov2-large"
    aesthetic: Source = "data/aesthetic.safetensors"

    @model_validator(mode="after")
    def _grid(self):
        for n in self.intervals:
            Grid(n)
        if self.study == "gmm" and self.updates:
            raise refusal("updates", self.updates, "0", " for the study gmm, whose teacher is exact")
        if self.study != "gmm" and (self.dimension, self.modes) != (2, 3):
            name, value = ("dimension", 2) if self.dimension != 2 else ("modes", 3)
            raise refusal(name, getattr(self, name), f"{value}", f" for the study {self.study}, which has its own data")
        images = {"cifar10": ("cifar10", "folder", "teacher"), "sdxl": ("folder",)}
        sources = images.get(self.study, ("builtin",))
        if self.data not in sources:
            raise refusal("data", self.data, ", ".join(sources), f" for the study {self.study}")
        if self.data == "teacher" and self.updates:
            raise refusal(
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
        Grid(self.intervals)
        horizons = [resolve_horizon(h, self.intervals) for h in self.horizons]
        if len(set(horizons)) < len(horizons):
            raise InputError(f"horizons = {shown(self.horizons)} names one value twice; allowed: each value once.")
        return self

    def group(self) -> Group:
        """The :class:`dcm.horizon.Group` it describes."""
        horizons = tuple(resolve_horizon(h, self.intervals) for h in self.horizons)
        return Group(self.solver, self.intervals, tuple(map(float, self.guidance)), horizons, tuple(self.seeds))


class TrainingParameters(Parameters):
    """How students train; see :class:`dcm.training.settings.Settings`."""

    updates: Count
    batch: Batch
    lr: Rate = 1e-4
    lr_decay: Annotated[Literal["constant", "linear"], Field(description="one of constant, linear")] = "constant"
    weight_decay: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")] = 1e-2
    max_norm: Positive = 1.0
    loss: Annotated[Literal["l2", "huber"], Field(description="one of l2, huber")] = "l2"
    ema: Annotated[float, Field(ge=0, lt=1, description="a number from 0 (off) to below 1")] = 0.0
    updates_per_solve: Annotated[int, between(1, 1024)] = 1
    solves_in_flight: Annotated[int, between(0, 65536)] = 0
    pairs_per_trajectory: Annotated[int, between(1, 1000)] = 1
    optimizer: Annotated[Literal["adamw", "adamw8bit"], Field(description="one of adamw, adamw8bit")] = "adamw"
    pretrain: Whole = 0
    width: Annotated[int, between(1, 4096)] = 64
    lora_rank: Annotated[int, between(0, 4096)] = 0
    snapshots: Annotated[int, between(0, 1000)] = 0
    checkpoint_seconds: Positive = 60.0
    gradient_checkpointing: Annotated[bool, Field(description="true or false")] = True
    microbatch: Whole = 0
    compiled: Annotated[bool, Field(description="true or false")] = False
    teacher_precision: Annotated[Literal["auto", "fp8"], Field(description="one of auto, fp8")] = "auto"
    processes: Count = 1


class DistillParameters(Common, GroupParameters, TrainingParameters):
    """Notebook 2."""

    group_name: Name

    @model_validator(mode="after")
    def _reusable(self):
        check_reuse(self.pairs_per_trajectory, self.batch, self.intervals, self.solves_in_flight)
        return self

    @model_validator(mode="after")
    def _adaptable(self):
        if self.lora_rank and self.study not in ("digits", "cifar10"):
            other = ", whose students are adapters of rank width" if self.study == "sdxl" else ""
            raise refusal("lora_rank", self.lora_rank, "0", f" for the study {self.study}{other}")
        if self.lora_rank and not self.pretrain:
            raise refusal("pretrain", 0, "1 with lora_rank above 0: an adapter needs the teacher below it")
        return self


def _with_one(steps: list[int]) -> list[int]:
    """Verdicts and most figures are about one-step samples."""
    if 1 not in steps:
        raise ValueError
    return steps


def check_apart(parameters):
    """Both folders have files of the same names."""
    if project_path(parameters.results_dir).resolve() == project_path(parameters.run_dir).resolve():
        raise refusal("results_dir", parameters.results_dir, "a folder other than run_dir")
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
            raise refusal("main_group", self.main_group, ", ".join(self.groups))
        return self


class ODEErrorParameters(Common, EvaluationParameters):
    """Notebook 3."""

    start_times: Annotated[int, between(1, 1000)] = 10
    start_samples: Samples = 512


class QualityParameters(Common, EvaluationParameters):
    """Notebook 4."""


class FigureParameters(Common):
    """Notebook 5."""

    results_dir: NewFolder
    main_group: Name = "main"
    bootstrap: Annotated[int, between(100, 100_000)] = 10000
    confidence: Annotated[float, Field(gt=0.5, lt=1, description="a number between 0.5 and 1")] = 0.95

    @model_validator(mode="after")
    def _apart(self):
        return check_apart(self)


def check_ends(name: str, group: dict) -> None:
    """Raise :class:`InputError` unless a main group has both ends of the horizon, which most figures compare.

    `group` has ``intervals`` and ``horizons``.
    """
    ends = {"cm": 1, "direct": group["intervals"]}
    horizons = [ends.get(h, h) for h in group["horizons"]]
    if group["intervals"] == 1:
        raise refusal("intervals", 1, "numbers of intervals from 2 on", f" for the main group {name}")
    if not {1, group["intervals"]} <= set(horizons):
        raise refusal(
            "horizons", list(group["horizons"]), "lists with both 'cm' and 'direct'", f" for the main group {name}"
        )


NOTEBOOKS: dict[str, type[Parameters]] = {
    "1_teacher": TeacherParameters,
    "2_distill": DistillParameters,
    "3_ode_error": ODEErrorParameters,
    "4_sample_quality": QualityParameters,
    "5_figures": FigureParameters,
}
