"""Samples of teacher and students from the same noise: notebook 2 makes and keeps them, the others read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from dcm.consistency import sample
from dcm.schedule import Grid
from dcm.students.lockstep import Students
from dcm.studies.base import Study, solve_in_chunks
from dcm.support.files import fingerprint, kept_tensors, read_header
from dcm.support.processes import ALONE, Processes
from dcm.support.progress import tqdm
from dcm.support.seeds import sample_noise
from dcm.training.saved import DistilledGroup

# From which on the minute that compiling takes is won back: calls of a costly teacher, and evaluations of other networks.
CALLS, COMPILED = 2000, 1 << 20
KEPT = {"cpu": 1 << 26, "cuda": 1 << 33}  # bytes of one set of students' samples that are worth their room, by device


@dataclass(eq=False)
class EvaluationSet:
    """Fixed noise and conditions, shared by the teacher and every student. What is sampled is kept in ``run_dir/samples``.

    Sample i has class i mod num_classes; its noise depends on (seed, i) alone.
    """

    study: Study
    run_dir: Path
    samples: int
    seed: int
    device: torch.device

    @property
    def home(self) -> torch.device:
        """Where noise and samples lie: of a costly study on the CPU, since a GPU that holds its networks is full."""
        return torch.device("cpu") if self.study.costly else self.device

    @cached_property
    def noise(self) -> Tensor:
        """Initial noise (B, *shape)."""
        return sample_noise(self.seed, "evaluation", range(self.samples), self.study.teacher.shape).to(self.home)

    @cached_property
    def condition(self) -> Tensor:
        """Classes (B,)."""
        return torch.arange(self.samples, device=self.home) % self.study.teacher.num_classes

    def fresh_noise(self, step: int) -> Tensor:
        """Fresh noise (B, *shape) of sampling step number `step` (1, 2, ..)."""
        shape = self.study.teacher.shape
        return sample_noise(self.seed, "renoise", range(self.samples), shape, step).to(self.home)

    @property
    def shown(self) -> slice:
        """The samples that are looked at: more than a figure shows; of a costly study twelve from all over, each its own caption."""
        if self.study.costly:
            return slice(0, None, max(1, self.samples // 12))
        return slice(64 if self.study.is_image else 1200)

    def mark(self, *parts) -> str:
        """What a file of this set is known by: teacher, number of samples, seed and any `parts`."""
        return fingerprint(*parts, self.study.teacher_id, self.samples, self.seed)

    def kept(self, name: str, make: Callable[[], Tensor], *parts) -> Tensor:
        """A tensor of ``run_dir/samples``; made where there is none, or a damaged one, or one of another :meth:`mark`."""
        return kept_tensors(self._path(name), self.mark(*parts), lambda: {"x": make()}, self.home)["x"]

    def _path(self, name: str) -> Path:
        return self.run_dir / "samples" / f"{name}.safetensors"

    @cache  # noqa: B019 - read once; a set lasts as long as its notebook
    def teacher_samples(self, solver: str, intervals: int, guidance: float) -> Tensor:
        """The teacher's N-step solutions (B, *shape) from the noise."""
        if self.study.costly:
            return torch.cat(self.teacher_parts(solver, intervals, guidance))

        def make() -> Tensor:
            self._compile_teacher(guidance, self.samples * intervals * (1 if guidance == 1 else 2) > COMPILED)
            return self._solved(slice(None), solver, intervals, guidance)

        return self.kept(f"{solver}-{intervals}-{guidance:g}", make)

    def _compile_teacher(self, guidance: float, worth: bool) -> None:
        """Let a GPU run the teacher compiled, where that is `worth` it."""
        if worth and self.device.type == "cuda" and hasattr(self.study.teacher, "compile_for"):
            self.study.teacher.compile_for(self.study.chunk * (1 if guidance == 1 else 2))

    def _solved(self, rows: slice, solver: str, intervals: int, guidance: float) -> Tensor:
        x, c = (v[rows].to(self.device) for v in (self.noise, self.condition))
        return solve_in_chunks(self.study, x, c, guidance, solver, Grid(intervals, self.study.teacher.schedule.T))

    @property
    def parts(self) -> list[slice]:
        """What of a costly study lies in files of its own, so that a kill loses one."""
        return [slice(i, i + self.study.chunk) for i in range(0, self.samples, self.study.chunk)]

    def missing(self, solver: str, intervals: int, guidance: float) -> list[slice]:
        """The :attr:`parts` of the teacher's samples that are not there, or of another :meth:`mark`."""
        path = lambda rows: self._path(f"{solver}-{intervals}-{guidance:g}-parts/{rows.start:06d}")
        return [rows for rows in self.parts if read_header(path(rows)).get("mark") != self.mark()]

    def teacher_parts(self, solver: str, intervals: int, guidance: float, processes: Processes = ALONE) -> list[Tensor]:
        """The teacher's samples by :attr:`parts`; of several `processes` each makes its own."""
        name, own = f"{solver}-{intervals}-{guidance:g}", self.parts[processes.rank :: processes.size]
        left, teacher = len(self.missing(solver, intervals, guidance)), self.study.teacher
        self._compile_teacher(guidance, left * intervals > CALLS)
        bar = tqdm(own, desc=f"teacher's samples, {name}", unit="chunk", leave=False, disable=not processes.first)
        make = lambda rows: self.kept(f"{name}-parts/{rows.start:06d}", lambda: self._solved(rows, solver, intervals, guidance))
        made = [make(rows) for rows in bar]
        if left and hasattr(teacher, "forget"):
            teacher.forget()  # the fast copy's memory is for the students now
        return made

    @cache  # noqa: B019
    def exact_samples(self, guidance: float) -> Tensor:
        """The PF-ODE's true solutions (B, *shape) from the noise, where they are known."""
        T = self.study.teacher.schedule.T
        make = lambda: self.study.reference(self.noise, T, self.condition, guidance, Grid(T, T))
        return self.kept(f"exact-{guidance:g}", make)

    def student_samples(self, students: Students, intervals: int, steps: int, rows: slice = slice(None)) -> Tensor:
        """Samples (M, B, *shape) of every student in `steps` steps from the common noise, or those of some `rows`."""
        grid, fresh = Grid(intervals, self.study.teacher.schedule.T), [self.fresh_noise(k) for k in range(1, steps)]
        chunks, out = [v[rows].split(self.study.chunk) for v in (self.noise, self.condition, *fresh)], []
        for parts in zip(*chunks):
            x, c, *again = (v.to(self.device) for v in parts)
            x, c = (v.expand(students.size, *v.shape) for v in (x, c))
            out.append(sample(self.study.f, students, x, c, grid, again).to(self.home))
        return torch.cat(out, 1)

    def keeps(self, distilled: DistilledGroup) -> bool:
        """Whether a group's samples are kept; sets that are too large are sampled whenever they are asked for."""
        return 4 * len(distilled.group.members) * self.samples * math.prod(self.study.teacher.shape) <= KEPT[self.device.type]

    def of_group(self, distilled: DistilledGroup, update: int, steps: int, rows: slice = slice(None), compiled: bool = False) -> Tensor:
        """Samples (M, B, *shape) of a group's students with their weights at `update`, or those of some `rows`.

        Where they are not there yet, `compiled` students make them, on a GPU.
        """

        def make(rows: slice = slice(None)) -> Tensor:
            students = distilled.students(self.study, update, self.device)
            if compiled:
                self.study.compile_students(students)
            return self.student_samples(students, distilled.group.intervals, steps, rows)

        if not self.keeps(distilled):
            return make(rows)
        return self.kept(f"{distilled.name}-{update}-{steps}", make, distilled.digest)[:, rows]


def sample_students(evaluation: EvaluationSet, distilled: DistilledGroup, steps: Sequence[int], processes: Processes = ALONE) -> None:
    """Make the samples of a group's students that are kept; of several `processes` each makes its share of the sets."""
    if evaluation.keeps(distilled):
        own = distilled.sets(steps)[processes.rank :: processes.size]
        compiled = len(distilled.group.members) * evaluation.samples * sum(k for _, k in own) > COMPILED
        for update, k in tqdm(own, desc="students sampled", unit="set", disable=not processes.first):
            evaluation.of_group(distilled, update, k, compiled=compiled)


def sample_group(evaluation: EvaluationSet, distilled: DistilledGroup, steps: Sequence[int]) -> None:
    """Sample a group and its teacher, for notebooks 3 and 4 to measure; what is kept already is left as it is."""
    group = distilled.group
    for w in group.guidance:
        evaluation.teacher_samples(group.solver, group.intervals, w)
        if evaluation.study.exact:
            evaluation.exact_samples(w)
    sample_students(evaluation, distilled, steps)
    (evaluation.run_dir / "checkpoints" / distilled.path.name).unlink(missing_ok=True)  # of their training
