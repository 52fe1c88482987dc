"""What notebooks know of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students.lockstep import Students
from dcm.support.errors import InputError
from dcm.support.files import read_json

REFERENCE_INTERVALS = 200  # of the fine grid that stands in for the true ODE solution


@dataclass
class Study:
    """A teacher with its data, students and metrics; what it leaves out here does nothing."""

    name: str  # as in the parameters
    teacher: Any  # follows dcm.teacher.Teacher, with num_classes
    data: Any  # has draw(generator, batch)
    quality: Any  # see dcm.metrics.mixture and dcm.metrics.images
    f: ConsistencyFunction  # of the students
    chunk: int  # samples evaluated at once
    exact: bool  # whether the PF-ODE's true solution is known
    teacher_id: str  # changes whenever the teacher does
    # Whether hours of work lie in a checkpoint, so that one of other settings is refused and not replaced, and the
    # teacher's samples are kept chunk by chunk.
    costly = False
    precision = "auto"  # of the teacher's solves
    measured_by = ""  # changes whenever what measures quality does, and the teacher does not

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> Students:
        """Fresh students, one a seed, of a `width` that the study interprets; `lora_rank` is for those of networks."""
        raise NotImplementedError

    def start_from_teacher(self, students: Students, seeds: Sequence[int], updates: int) -> None:
        """Give fresh students the teacher's knowledge, as the paper's have, unless they start as copies of it anyway."""

    def reference(self, x: Tensor, n: int, condition: Tensor, guidance: float, grid: Grid) -> Tensor:
        """The best known solution from grid index n: DDIM's on the coarsest grid of 200 or more intervals that has `grid`'s."""
        T = self.teacher.schedule.T
        least = min(REFERENCE_INTERVALS, T)
        fine = next(N for N in range(grid.intervals, T + 1, grid.intervals) if N >= least and T % N == 0)
        return solve_in_chunks(self, x, condition, guidance, "ddim", Grid(fine, T), n * fine // grid.intervals)

    def before_training(self, students: Students, parameters, processes) -> None:
        """Ready `students` for training by `parameters`; raises :class:`InputError` where they cannot."""

    def compile_students(self, students: Students) -> None:
        """Let a GPU run `students` compiled, where they can be."""

    def use_precision(self, precision: str) -> None:
        """Let the teacher solve in ``fp8``, or as it does by itself (``auto``); raises :class:`InputError`."""
        if precision != self.precision:
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


def solve_in_chunks(
    study: Study, x: Tensor, condition: Tensor, guidance: float, solver: str, grid: Grid, n: int | None = None
) -> Tensor:
    """The teacher's solutions from `x` (B, *shape) at grid index n (noise: N), `study.chunk` samples at a time."""
    parts = zip(x.split(study.chunk), condition.split(study.chunk))
    return torch.cat([solve(study.teacher, a, n or grid.intervals, c, guidance, solver, grid).x for a, c in parts])


def teacher_record(run_dir: Path, needed_by: str = "") -> dict | None:
    """What notebook 1 noted of the teacher in `run_dir`, its ``study`` above all; None where it has not run.

    Raises :class:`InputError` for a damaged record, and for none where a study is named that it is `needed_by`.
    """
    path = run_dir / "teacher" / "teacher.json"
    if not path.exists():
        if needed_by:
            to_do = "run notebook 1 with this run_dir first"
            raise InputError(f"{path.parent} holds no teacher of the study {needed_by}; {to_do}.")
        return None
    record = read_json(path)
    if not isinstance(record, dict) or "study" not in record:
        raise InputError(f"{path} is no teacher's record; delete it and run notebook 1 again.")
    return record
