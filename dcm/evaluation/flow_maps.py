"""Maps from a noisy point to data, the teacher's and the students': how steep they are, and where students err.

What notebook 6 tests its explanations with. The teacher's map is its ODE solution Phi(x, t_n); a student's is f(x, t_n);
a target's is what the student was trained towards, as a function of the same x. Derivatives are central differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcm.evaluation.by_time import noised_data, starting_indices
from dcm.evaluation.samples import EvaluationSet
from dcm.evaluation.students import describe
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students.lockstep import Students
from dcm.studies.base import Study
from dcm.support.files import RowStore, fingerprint
from dcm.support.progress import tqdm
from dcm.support.ranks import spearman
from dcm.support.seeds import sample_noise
from dcm.training.saved import DistilledGroup

STEP = 0.01  # of the central differences, in the units of x; noise has scale 1
PARTS = 4  # starting times and groups of equal steepness


def probe_directions(shape: tuple[int, ...], count: int) -> Tensor:
    """Orthonormal directions (P, *shape), P = min(count, D): the axes where `count` covers all D, else drawn at random."""
    size = int(np.prod(shape))
    if size <= count:
        return torch.eye(size).reshape(size, *shape)
    drawn = torch.randn(size, count, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn).Q.T.reshape(count, *shape)


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, step: float = STEP) -> Tensor:
    """J d for every direction d: central differences of `function` at `x` (B, *shape), as (..., P, B, *shape).

    `function` maps (2 P B, *shape), rows in the order sign, direction, point, to the same with any axes before it.
    """
    moved = torch.stack([x + s * step * d for s in (1, -1) for d in directions]).flatten(0, 1)
    y = function(moved)
    axis = y.ndim - x.ndim
    ahead, behind = y.unflatten(axis, (2, len(directions), len(x))).unbind(axis)
    return (ahead - behind) / (2 * step)


@dataclass(frozen=True)
class Steepness:
    """Of a map at points, from its derivatives J d along orthonormal directions.

    Attributes
    ----------
    lipschitz : (..., B), the largest singular value of J on the span of the directions: the local Lipschitz constant
    where they span the space, else a lower bound of it. gain : (..., B), the root mean square of |J d|.
    """

    lipschitz: Tensor
    gain: Tensor

    @classmethod
    def of(cls, jacobian: Tensor, axes: int) -> Steepness:
        """From :func:`derivatives` (..., P, B, *shape), where shape has `axes` axes."""
        columns = jacobian.flatten(-axes).movedim(-3, -1)  # (..., B, D, P)
        gain = columns.square().sum(-2).mean(-1).sqrt()
        # Where a derivative is not finite there are no singular values.
        return cls(torch.linalg.matrix_norm(columns.nan_to_num(0, 0, 0), 2) + 0 * gain, gain)


def averaging_index(x: Tensor, solution: Tensor, condition: Tensor) -> float:
    """(Var solution - Var x) / mean squared error, variances within classes, all means over elements.

    A conditional mean is uncorrelated with its own error, so Var solution = Var x + error: 1 says that a student differs
    from the ODE solution as an average over end points does, 0 that its samples spread as widely, below 0 wider.
    `x`, `solution` (B, *shape), `condition` (B,).
    """
    within = lambda v: sum(
        float((v[condition == c] - v[condition == c].mean(0)).double().square().sum()) for c in condition.unique()
    )
    return (within(solution) - within(x)) / float((x - solution).double().square().sum())


@dataclass
class Maps:
    """The maps of one group of students, at one guidance scale.

    Parameters
    ----------
    points : at which maps are compared. probes : directions of derivatives.
    """

    study: Study
    distilled: DistilledGroup
    students: Students
    guidance: float
    points: int
    probes: int
    seed: int = 0

    def __post_init__(self) -> None:
        group = self.distilled.group
        self.grid = Grid(group.intervals, self.study.teacher.schedule.T)
        self.members = [i for i, m in enumerate(group.members) if m.guidance == self.guidance]
        self.device = next(self.students.parameters()).device
        self.directions = probe_directions(self.study.teacher.shape, self.probes).to(self.device)

    def solve(self, x: Tensor, n: int, c: Tensor, steps: int | None = None, trajectory: bool = False):
        """The teacher's solution from grid index `n`, with the group's solver."""
        solver = self.distilled.group.solver
        return solve(self.study.teacher, x, n, c, self.guidance, solver, self.grid, steps, trajectory=trajectory)

    @torch.no_grad()
    def answers(self, x: Tensor, n: int, c: Tensor) -> Tensor:
        """f(x, t_n) of every student, (M, B, *shape), for common points (B, *shape) or each its own (M, B, *shape)."""
        common = x.ndim == len(self.study.teacher.shape) + 1
        x = x.expand(self.students.size, *x.shape) if common else x
        c = c.expand(x.shape[:2])
        return self.study.f(self.students, x, torch.full(x.shape[:2], self.grid.time(n), device=self.device), c)

    def own_targets(self, x: Tensor, n: int, c: Tensor) -> Tensor:
        """What students are trained towards at x_{t_n}, (M, B, *shape); NaN where that is the teacher's solution."""
        out = torch.full((self.students.size, *x.shape), torch.nan, device=self.device)
        for h in self.distilled.group.horizons:
            if h < n:
                own = [i for i, m in enumerate(self.distilled.group.members) if m.horizon == h]
                out[own] = self.answers(self.solve(x, n, c, h).x, n - h, c)[own]
        return out

    def steepness(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, c: Tensor) -> Steepness:
        """Of `function(x, c)` at `x` (B, *shape)."""
        many = c.repeat(2 * len(self.directions))
        return Steepness.of(derivatives(lambda y: function(y, many), x, self.directions), x.ndim - 1)

    def by_time(self) -> Iterator[dict]:
        """One row a student and starting time: steepness of teacher, student and target, and where the student errs.

        Starts are data noised to t_n. ``gain_*`` are root mean squares over points; ``steep_correlation`` is Spearman's
        between the teacher's local Lipschitz constant and the squared error; ``error_1`` .. ``error_4`` are mean squared
        errors by quarters of points from the flattest to the steepest, ``lipschitz_1`` .. their Lipschitz constants.
        """
        rms = lambda v: float(v.square().mean(-1).sqrt())
        for n in starting_indices(self.grid.intervals, PARTS):
            x, c = noised_data(self.study, self.seed, self.points, n, self.grid, self.device)
            teacher = self.steepness(lambda y, k: self.solve(y, n, k).x, x, c)
            student = self.steepness(lambda y, k: self.answers(y, n, k), x, c)
            own = self.steepness(lambda y, k: self.own_targets(y, n, k), x, c).gain
            target = torch.where(own.isnan(), teacher.gain, own)  # of long horizons the target is the ODE map
            errors = (self.answers(x, n, c) - self.solve(x, n, c).x).square().flatten(2).mean(2)
            quarters = teacher.lipschitz.argsort().tensor_split(PARTS)
            for i in self.members:
                yield self._describe(i) | {
                    "t": self.grid.time(n), "error": float(errors[i].mean()),
                    "gain_teacher": rms(teacher.gain), "gain_student": rms(student.gain[i]), "gain_target": rms(target[i]),
                    "steep_correlation": float(spearman(teacher.lipschitz.cpu().numpy(), errors[i].cpu().numpy())),
                    **{f"error_{q}": float(errors[i][rows].mean()) for q, rows in enumerate(quarters, 1)},
                    **{f"lipschitz_{q}": float(teacher.lipschitz[r].mean()) for q, r in enumerate(quarters, 1)},
                }  # fmt: skip

    def from_noise(self, evaluation: EvaluationSet, reference: Callable[[Tensor, Tensor], Tensor]) -> Iterator[dict]:
        """One row a student, from the evaluation noise; mean squared errors are over elements.

        ``averaging``: :func:`averaging_index` over the whole evaluation set. ``error_prior``, ``error_noised``: from
        noise, and from data noised to T. ``error_own``, ``error_renoised``: in the middle of the grid, from the student's
        own sample noised anew, and from data noised there. ``residual``: sum over the grid of the mean squared step
        f(x_n) - f(x_{n-1}) of the student along the teacher's trajectory; ``accumulation``: the squared error over
        that sum, 1 when the steps are unrelated, N when all agree. ``error_true``, ``solver_true``: student and teacher
        against the reference solution `reference(x, c)`.
        """
        N, rows = self.grid.intervals, slice(0, self.points)
        mse = lambda y, z: (y - z).double().square().flatten(2).mean((1, 2))
        noise, c = evaluation.noise[rows].to(self.device), evaluation.condition[rows].to(self.device)
        path = self.solve(noise, N, c, trajectory=True).trajectory
        solution = path[-1]
        along = [self.answers(path[N - n], n, c) for n in range(N, 0, -1)]
        along = torch.stack([*along, solution.expand_as(along[0])])
        residual = (along[:-1] - along[1:]).double().square().sum(0).flatten(2).mean((1, 2))
        samples = along[0]
        x_T, c_T = noised_data(self.study, self.seed, self.points, N, self.grid, self.device)
        middle = self.grid.student_indices(2)[1] if N > 1 else N
        x_m, c_m = noised_data(self.study, self.seed, self.points, middle, self.grid, self.device)
        fresh = sample_noise(self.seed, "renoise", range(self.points), self.study.teacher.shape, 1).to(self.device)
        t_m = torch.full(samples.shape[:2], self.grid.time(middle), device=self.device)
        own = self.study.teacher.schedule.add_noise(samples, fresh.expand_as(samples), t_m)
        own_solution = torch.stack([self.solve(own[i], middle, c).x for i in self.members])
        truth = reference(noise, c).to(samples.dtype)
        every = evaluation.student_samples(self.students, N, 1)
        teacher = evaluation.teacher_samples(self.distilled.group.solver, N, self.guidance)
        values = {
            "error_prior": mse(samples, solution),
            "error_noised": mse(self.answers(x_T, N, c_T), self.solve(x_T, N, c_T).x),
            "error_renoised": mse(self.answers(x_m, middle, c_m), self.solve(x_m, middle, c_m).x),
            "residual": residual,
            "error_true": mse(samples, truth),
        }
        error_own = mse(self.answers(own, middle, c)[self.members], own_solution)
        for k, i in enumerate(self.members):
            yield self._describe(i) | {name: float(v[i]) for name, v in values.items()} | {
                "averaging": averaging_index(every[i], teacher, evaluation.condition),
                "accumulation": float(values["error_prior"][i] / residual[i]),
                "error_own": float(error_own[k]),
                "solver_true": float((solution - truth).double().square().mean()),
            }  # fmt: skip

    def _describe(self, i: int) -> dict:
        group = self.distilled.group
        return describe(self.distilled.name, group, group.members[i], self.distilled.updates[-1], 1)


KEY = ("fingerprint", "guidance", "horizon", "seed", "t")


def measure_maps(
    study: Study, evaluation: EvaluationSet, groups: list[DistilledGroup], points: int, probes: int, store
) -> tuple[list[dict], list[dict]]:
    """Rows of :meth:`Maps.by_time` and of :meth:`Maps.from_noise` of every student at the end of its training.

    What is found in the folder `store` is not measured again.
    """
    stores = [RowStore(store / f"{name}.jsonl", KEY) for name in ("by_time", "from_noise")]
    truth: dict[float, Tensor] = {}
    out: tuple[list[dict], list[dict]] = ([], [])
    work = [(g, w) for g in groups for w in g.group.guidance]
    for distilled, w in tqdm(work, desc="maps measured", unit="group"):
        mark = fingerprint(distilled.path, study.teacher_id, points, probes, evaluation.samples, evaluation.seed)
        known = lambda s: [r for r in s.done.values() if r["fingerprint"] == mark and r["guidance"] == w]
        if len(known(stores[1])) < sum(m.guidance == w for m in distilled.group.members):  # written last
            students = distilled.students(study, distilled.updates[-1], evaluation.device)
            maps = Maps(study, distilled, students, w, points, probes, evaluation.seed)

            def reference(x: Tensor, c: Tensor) -> Tensor:
                if w not in truth:
                    truth[w] = study.reference(x, maps.grid.intervals, c, w, maps.grid)
                return truth[w]

            made = [list(maps.by_time()), [r | {"t": maps.grid.T} for r in maps.from_noise(evaluation, reference)]]
            for s, rows in zip(stores, made):
                for row in rows:
                    s.add({"fingerprint": mark} | row)
        for part, s in zip(out, stores):
            part += [{k: v for k, v in row.items() if k != "fingerprint"} for row in known(s)]
    return out
