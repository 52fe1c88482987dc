"""The studies: which teacher, data, students and quality metrics belong together.

Everything else in the package is the same for all of them. A study is an object with the members of
:class:`Study`; :func:`load_study` finds it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcm.artifacts import read_json
from dcm.consistency import ConsistencyFunction
from dcm.errors import InputError
from dcm.metrics import MixtureQuality
from dcm.progress import tqdm
from dcm.random import generator
from dcm.schedule import Grid
from dcm.solvers import exact_solution, solve
from dcm.students import MLPStudents, Students
from dcm.teachers.mixture import GaussianMixtureTeacher


@dataclass
class Study:
    """What notebooks know of a study.

    Attributes
    ----------
    name : as in the parameters. teacher : follows :class:`dcm.teachers.base.Teacher`, with ``num_classes``.
    data : has ``draw(generator, batch)``. quality : see :mod:`dcm.metrics`. f : the students' consistency function.
    chunk : samples evaluated at once. exact : whether the PF-ODE's true solution is known.
    teacher_id : changes whenever the teacher does.
    costly : whether hours of work lie in a checkpoint, so that one of other settings is refused and not replaced,
        and whether the teacher's samples are kept chunk by chunk.
    """

    name: str
    teacher: Any
    data: Any
    quality: Any
    f: ConsistencyFunction
    chunk: int
    exact: bool
    teacher_id: str
    costly = False
    precision = "auto"  # of the teacher's solves

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> Students:
        """Fresh students, one a seed, of a `width` that the study interprets; `lora_rank` see :mod:`dcm.image_study`."""
        raise NotImplementedError

    def start_from_teacher(self, students: Students, seeds: Sequence[int], updates: int) -> None:
        """Give fresh students the teacher's knowledge, as the paper's students have, which start as copies of it."""
        raise NotImplementedError

    def reference(self, x: Tensor, n: int, condition: Tensor, guidance: float, grid: Grid) -> Tensor:
        """The best known solution of the PF-ODE from grid index n: exact, or a much finer grid."""
        raise NotImplementedError

    def before_training(self, students: Students, parameters, team) -> None:
        """Ready `students` for training by `parameters`; raises :class:`InputError` where they cannot."""

    def use_precision(self, precision: str) -> None:
        """Let the teacher solve in ``fp8``, or as it does by itself (``auto``); raises :class:`InputError`."""
        if precision == self.precision:
            return
        if not hasattr(self.teacher, "freeze"):
            raise InputError(
                f"teacher_precision = {precision!r} is not possible for the study {self.name}, whose teacher is no network; "
                "allowed: auto."
            )
        self.teacher.freeze(precision)
        self.precision = precision

    def to(self, device: torch.device) -> None:
        """Move large networks to `device`, while others need the one they are on."""

    def export(self, distilled, device: torch.device) -> None:
        """Leave trained students in a form that others can use."""

    def pictures(self, x: Tensor) -> Tensor:
        """Samples (B, *shape) as images (B, C, H, W) in [-1, 1], for those studies that have them."""
        return x

    @property
    def is_image(self) -> bool:
        """Whether samples are images (C, H, W)."""
        return len(self.teacher.shape) == 3


class MixtureStudy(Study):
    """The exact teacher on a Gaussian mixture, with multilayer perceptrons as students.

    Parameters
    ----------
    dimension, modes : of the data, and of each class; see :meth:`GaussianMixtureTeacher.of`.
    """

    def __init__(self, name: str, device: torch.device, dimension: int = 2, modes: int = 3):
        teacher = GaussianMixtureTeacher.of(dimension, modes)
        default = (dimension, modes) == (2, 3)
        super().__init__(
            name, teacher, teacher, MixtureQuality(teacher), ConsistencyFunction(teacher.schedule), chunk=1 << 16,
            exact=True, teacher_id="interleaved_ring" if default else f"mixture-{dimension}-{modes}",
        )  # fmt: skip

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> MLPStudents:
        """Multilayer perceptrons with 3 hidden layers of `width`; there is no teacher's network to adapt."""
        return MLPStudents(seeds, self.teacher.shape[0], self.teacher.num_classes, self.teacher.schedule.T, width)

    def start_from_teacher(self, students: MLPStudents, seeds: Sequence[int], updates: int) -> None:
        """Fit the teacher's (unguided, conditional) v-prediction for `updates` updates of 256; 0 leaves them fresh.

        The exact teacher is no network to copy. Students of one seed start equal, so one fit a seed is enough.
        """
        if updates == 0:
            return
        unique = list(dict.fromkeys(seeds))
        device, schedule = next(students.parameters()).device, self.teacher.schedule
        fitted = self.make_students(unique, students.width).to(device)
        optimizer = torch.optim.AdamW(
            fitted.parameters(), lr=2e-3, weight_decay=1e-4, fused=device.type in ("cpu", "cuda")
        )
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda u: min(1.0, 2 * (1 - u / updates)))
        for update in tqdm(range(updates), desc="start from the teacher", unit="update"):
            rows = []
            for seed in unique:
                g = generator(device, seed, "teacher", update)
                x_0, c = self.teacher.draw(g, 256)
                t = torch.randint(1, schedule.T + 1, (256,), generator=g, device=device)
                x = schedule.add_noise(x_0, torch.randn(x_0.shape, generator=g, device=device), t)
                # v = alpha eps - sigma x0_hat with x0_hat = (x - sigma eps) / alpha
                v = (self.teacher.predict_noise(x, t, c) - schedule.sigma(t, x) * x) / schedule.alpha(t, x)
                rows.append((x, t, c, v))
            x, t, c, v = (torch.stack(column) for column in zip(*rows))
            optimizer.zero_grad(set_to_none=True)
            (fitted(x, t, c) - v).square().flatten(1).mean(1).sum().backward()
            fitted.clip_gradients(1.0)
            optimizer.step()
            decay.step()
        which = torch.tensor([unique.index(s) for s in seeds], device=device)
        students.load_state_dict({name: value[which] for name, value in fitted.state_dict().items()})

    def reference(self, x: Tensor, n: int, condition: Tensor, guidance: float, grid: Grid) -> Tensor:
        """True solution to about 1e-8, in float64."""
        return exact_solution(self.teacher, x, int(grid.time(torch.tensor(n))), condition, guidance)


def find_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one. Raises :class:`InputError` for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda' is not possible: no CUDA GPU is present; allowed here: auto, cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def ready_device(device: torch.device, threads: int) -> None:
    """Settings of torch that every process of a run shares."""
    torch.set_num_threads(threads)  # fixed, not "all cores": the sums' order, and so the results, depend on it
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def load_study(name: str, run_dir: str | Path, device: torch.device) -> Study:
    """The study called `name`, with whatever its teacher left in `run_dir`."""
    if name == "gmm":
        path = Path(run_dir) / "teacher" / "teacher.json"
        about = read_json(path) if path.exists() else {}  # before notebook 1: the study's own mixture
        return MixtureStudy(name, device, about.get("dimension", 2), about.get("modes", 3))
    if name == "sdxl":
        from dcm.sdxl_study import SDXLStudy

        return SDXLStudy(Path(run_dir), device)
    from dcm.image_study import ImageStudy

    return ImageStudy(name, Path(run_dir), device)


def solve_in_chunks(study: Study, x: Tensor, condition: Tensor, guidance: float, solver: str, grid: Grid) -> Tensor:
    """The teacher's samples from noise `x` (B, *shape): all N steps, `study.chunk` samples at a time."""
    parts = zip(x.split(study.chunk), condition.split(study.chunk))
    return torch.cat([solve(study.teacher, a, grid.intervals, c, guidance, solver, grid).x for a, c in parts])
