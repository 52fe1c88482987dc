"""The parameters of each notebook."""

from typing import Annotated

from annotated_types import Predicate
from pydantic import Field, model_validator

from dcm.horizon import Group, resolve_horizon
from dcm.pairs import check_reuse
from dcm.parameters import kinds as k
from dcm.parameters.check import Parameters, refusal, shown
from dcm.schedule import Grid
from dcm.solvers import SOLVERS
from dcm.support.errors import InputError
from dcm.support.files import project_path


class Place(Parameters):
    """Where a run leaves its files, and on what it runs."""

    run_dir: k.NewFolder
    device: k.Device = "auto"
    threads: k.Threads = 1


class Common(Place):
    """What every notebook of a study needs to know."""

    study: k.StudyName


class WithResults(Place):
    """What has a folder of results beside that of the run."""

    results_dir: k.NewFolder

    @model_validator(mode="after")
    def _apart(self):  # both have files of the same names
        if project_path(self.results_dir).resolve() == project_path(self.run_dir).resolve():
            raise refusal("results_dir", self.results_dir, "a folder other than run_dir")
        return self


def check_guidance(guidance: list[float], null_class: bool) -> None:
    """Raise :class:`InputError` for `guidance` by a diffusers pipeline's network that has no class which stands for none."""
    if not null_class and guidance != [1]:
        why = " for the study diffusers with null_class = false"
        raise refusal("guidance", guidance, f"{[1.0]}, or null_class = true where the network's last class is none", why)


def check_used(parameters: Common, notebook: str) -> None:
    """Raise :class:`InputError` for what is set, other than by default, and used by other studies alone."""
    used = {name: getattr(study, notebook) for name, study in k.STUDIES.items()}
    unused = set().union(*used.values()) - used[parameters.study]
    for name, field in type(parameters).model_fields.items():
        if name in unused and (value := getattr(parameters, name)) != field.default:
            why = f" for the study {parameters.study}, which does not use it"
            raise refusal(name, value, shown(field.default), why)


class TeacherParameters(Common):
    """Notebook 1."""

    seed: k.Seed = 0
    samples: Annotated[int, k.between(1, 100_000)] = 1024
    guidance: k.Guidance
    intervals: Annotated[list[k.Count], Field(min_length=1, description="a list of whole numbers that divide 1000")]
    solvers: Annotated[list[k.SolverName], Field(min_length=1, description=f"a list of {', '.join(SOLVERS)}")] = ["ddim", "euler", "heun"]
    dimension: Annotated[int, k.between(2, 256)] = 2
    modes: Annotated[int, k.between(1, 256)] = 3
    updates: k.Whole = 0
    batch: k.Batch = 128
    lr: k.Rate = 1e-3
    data: Annotated[str, k.one_of("builtin", "cifar10", "folder", "teacher")] = "builtin"
    data_dir: k.Folder = "data"
    download: k.Flag = False
    teacher_images: Annotated[int, k.between(1, 1_000_000)] = 10000
    inception: Annotated[str, k.one_of("off", "local", "download")] = "off"
    model: k.Source = "stabilityai/stable-diffusion-xl-base-1.0"
    null_class: k.Flag = False
    vae: k.Source = "of the model"
    resolution: Annotated[int, Field(ge=8, multiple_of=8, description="a whole number, a multiple of 8")] = 1024
    flip: k.Flag = False
    precision: Annotated[str, k.one_of("bf16", "fp16", "fp32")] = "bf16"
    clip: k.Source = "openai/clip-vit-large-patch14"
    dino: k.Source = "facebook/dinov2-large"
    aesthetic: k.Source = "data/aesthetic.safetensors"
    encoder: k.Source = "none"
    classifier: k.Source = "none"

    @model_validator(mode="after")
    def _possible(self):
        for n in self.intervals:
            Grid(n)
        check_used(self, "teacher")
        sources = k.STUDIES[self.study].data
        if self.data not in sources:
            raise refusal("data", self.data, ", ".join(sources), f" for the study {self.study}")
        if self.data == "teacher" and self.updates:
            why = " with updates above 0: a teacher needs images to train on"
            raise refusal("data", self.data, "cifar10, folder", why)
        if self.study == "diffusers":
            check_guidance(self.guidance, self.null_class)
        return self


class GroupParameters(Parameters):
    """One group of students: all combinations of guidance, horizons and seeds on one solver and grid."""

    solver: k.SolverName
    intervals: k.Count
    guidance: k.Guidance
    horizons: Annotated[list[k.Horizon], Field(min_length=1, description=f"a list, each of it {k.HORIZON}")]
    seeds: Annotated[list[k.Seed], Field(min_length=1, description="a list of whole numbers from 0 to 4294967295")]

    @model_validator(mode="after")
    def _possible(self):
        Grid(self.intervals)
        if len(set(self.group().horizons)) < len(self.horizons):
            raise InputError(f"horizons = {shown(self.horizons)} names one value twice; allowed: each value once.")
        return self

    def group(self) -> Group:
        """The :class:`dcm.horizon.Group` it describes."""
        horizons = tuple(resolve_horizon(h, self.intervals) for h in self.horizons)
        return Group(self.solver, self.intervals, tuple(map(float, self.guidance)), horizons, tuple(self.seeds))


class TrainingParameters(Parameters):
    """How students train; see :class:`dcm.training.settings.Settings`."""

    updates: k.Count
    batch: k.Batch
    lr: k.Rate = 1e-4
    lr_decay: Annotated[str, k.one_of("constant", "linear")] = "constant"
    weight_decay: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")] = 1e-2
    max_norm: k.Positive = 1.0
    loss: Annotated[str, k.one_of("l2", "huber")] = "l2"
    ema: Annotated[float, Field(ge=0, lt=1, description="a number from 0 (off) to below 1")] = 0.0
    at_switch: Annotated[str, k.one_of("continue", "restart")] = "continue"
    updates_per_solve: Annotated[int, k.between(1, 1024)] = 1
    solves_in_flight: Annotated[int, k.between(0, 65536)] = 0
    pairs_per_trajectory: Annotated[int, k.between(1, 1000)] = 1
    optimizer: Annotated[str, k.one_of("adamw", "adamw8bit")] = "adamw"
    pretrain: k.Whole = 0
    width: Annotated[int, k.between(0, 4096)] = 64
    lora_rank: Annotated[int, k.between(0, 4096)] = 0
    snapshots: Annotated[int, k.between(0, 1000)] = 0
    checkpoint_seconds: k.Positive = 60.0
    gradient_checkpointing: k.Flag = True
    microbatch: k.Whole = 0
    compiled: k.Flag = False
    teacher_precision: Annotated[str, k.one_of("auto", "fp8")] = "auto"
    processes: k.Count = 1


Steps = Annotated[
    list[Annotated[int, Field(ge=1, le=1000)]],
    Predicate(lambda steps: 1 in steps),  # verdicts and most figures are about one-step samples
    Field(description="a list of whole numbers from 1 to 1000, 1 among them"),
]


class DistillParameters(Common, GroupParameters, TrainingParameters):
    """Notebook 2, which ends by sampling its students: ``samples``, ``evaluation_seed`` and ``steps`` say how."""

    group_name: k.Name
    samples: k.Samples = 1024
    evaluation_seed: k.Seed = 0
    steps: Steps = [1]

    @model_validator(mode="after")
    def _trainable(self):
        check_reuse(self.pairs_per_trajectory, self.batch, self.intervals, self.solves_in_flight)
        check_used(self, "training")
        sdxl = self.study == "sdxl"
        if not (self.width or sdxl):
            raise refusal("width", 0, "a whole number, at least 1")
        if sdxl and self.width and self.lora_rank:
            raise refusal("lora_rank", self.lora_rank, "0, or any with width = 0: width is the rank of adapters of one network")
        if self.microbatch and not self.width:
            raise refusal("microbatch", self.microbatch, "0 with width = 0, where each student has a network of its own")
        if self.lora_rank and not (self.pretrain or sdxl):
            raise refusal("pretrain", 0, "1 with lora_rank above 0: an adapter needs the teacher below it")
        return self


class QualityParameters(Common):
    """The evaluation set of notebooks 3 and 4."""

    samples: k.Samples
    seed: k.Seed = 0
    steps: Steps
    groups: Annotated[list[k.Name], Field(min_length=1, description="a list of names of distilled groups")]
    main_group: k.Name = "main"

    @model_validator(mode="after")
    def _main_is_one_of_them(self):
        if self.main_group not in self.groups:
            raise refusal("main_group", self.main_group, ", ".join(self.groups))
        return self

    def steps_of(self, group: str) -> list[int]:
        """In how many steps a group's students are sampled: the main group's in all, the others' in one."""
        return self.steps if group == self.main_group else [1]


class SampleQualityParameters(QualityParameters):
    """Notebook 4."""

    processes: k.Count = 1


class ODEErrorParameters(QualityParameters):
    """Notebook 3."""

    start_times: Annotated[int, k.between(1, 1000)] = 10
    start_samples: k.Samples = 512


class FigureParameters(Common, WithResults):
    """Notebook 5."""

    main_group: k.Name = "main"


class SwitchParameters(WithResults):
    """Notebook 6, which reads what notebook 5 left of several studies."""

    results: Annotated[list[k.Folder], Field(min_length=1, description="a list of results folders of notebook 5")]


RUNS = "a list of run folders of notebooks 1 to 4, or of results folders of notebook 7"


class RegimeParameters(WithResults):
    """Notebook 7, which joins several studies' runs."""

    runs: Annotated[list[k.Folder], Field(min_length=1, description=RUNS)]


def check_ends(name: str, group: dict) -> None:
    """Raise :class:`InputError` unless a main `group` has both ends of the horizon, which most figures compare."""
    horizons = {resolve_horizon(h, group["intervals"]) for h in group["horizons"]}
    if group["intervals"] == 1:
        raise refusal("intervals", 1, "numbers of intervals from 2 on", f" for the main group {name}")
    if not {1, group["intervals"]} <= horizons:
        both = "lists with both 'cm' and 'direct'"
        raise refusal("horizons", list(group["horizons"]), both, f" for the main group {name}")


NOTEBOOKS: dict[str, type[Parameters]] = {  # of a study
    "1_teacher": TeacherParameters,
    "2_distill": DistillParameters,
    "3_ode_error": ODEErrorParameters,
    "4_sample_quality": SampleQualityParameters,
    "5_figures": FigureParameters,
}
EVERY_NOTEBOOK: dict[str, type[Parameters]] = {
    **NOTEBOOKS, "6_the_switch": SwitchParameters, "7_when_it_fails": RegimeParameters,
}  # fmt: skip
