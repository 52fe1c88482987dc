"""Samples of teacher and students from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dcm.consistency import sample
from dcm.schedule import Grid
from dcm.students.lockstep import Students
from dcm.studies.base import Study, solve_in_chunks
from dcm.support.files import fingerprint, read_tensors, write_tensors
from dcm.support.progress import tqdm
from dcm.support.seeds import sample_noise


@dataclass
class EvaluationSet:
    """Fixed noise and conditions, shared by the teacher and every student.

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

    def cached(self, name: str, make) -> Tensor:
        """A tensor kept in ``run_dir/evaluation``, made once per teacher and evaluation set."""
        key = fingerprint(self.study.teacher_id, self.samples, self.seed)
        path = self.run_dir / "evaluation" / f"{name}-{key}.safetensors"
        if not path.exists():
            write_tensors(path, {"x": make()})
        return read_tensors(path, self.home)[0]["x"]

    def teacher_samples(self, solver: str, intervals: int, guidance: float) -> Tensor:
        """The teacher's N-step solutions (B, *shape) from the noise."""
        grid, name = Grid(intervals, self.study.teacher.schedule.T), f"{solver}-{intervals}-{guidance:g}"

        def make(rows: slice = slice(None)) -> Tensor:
            x, c = (v[rows].to(self.device) for v in (self.noise, self.condition))
            return solve_in_chunks(self.study, x, c, guidance, solver, grid)

        if not self.study.costly:
            return self.cached(name, make)
        parts = [slice(i, i + self.study.chunk) for i in range(0, self.samples, self.study.chunk)]
        bar = tqdm(parts, desc=f"teacher's samples, {name}", unit="chunk", leave=False)
        return torch.cat([self.cached(f"{name}-parts/{rows.start:06d}", lambda: make(rows)) for rows in bar])

    def exact_samples(self, guidance: float) -> Tensor:
        """The PF-ODE's true solutions (B, *shape) from the noise, where they are known."""
        T = self.study.teacher.schedule.T
        return self.cached(
            f"exact-{guidance:g}", lambda: self.study.reference(self.noise, T, self.condition, guidance, Grid(T, T))
        )

    def student_samples(self, students: Students, intervals: int, steps: int, count: int | None = None) -> Tensor:
        """Samples (M, B, *shape) of every student in `steps` steps from the common noise, or the first `count`."""
        grid = Grid(intervals, self.study.teacher.schedule.T)
        fresh = [self.fresh_noise(k) for k in range(1, steps)]
        out = []
        count = min(self.samples, count or self.samples)
        for i in range(0, count, self.study.chunk):
            rows = slice(i, min(i + self.study.chunk, count))
            x, c, *again = (v[rows].to(self.device) for v in (self.noise, self.condition, *fresh))
            x, c = (v.expand(students.size, *v.shape) for v in (x, c))
            out.append(sample(self.study.f, students, x, c, grid, again).to(self.home))
        return torch.cat(out, 1)
