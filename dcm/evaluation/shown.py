"""Samples and targets to be looked at."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcm.evaluation.by_time import noised_data
from dcm.evaluation.samples import EvaluationSet
from dcm.horizon import method_name
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students.lockstep import Students
from dcm.studies.base import Study
from dcm.training.saved import DistilledGroup


def samples_to_show(
    evaluation: EvaluationSet, distilled: DistilledGroup, steps: Sequence[int], count: int = 1200
) -> dict[str, Tensor]:
    """Samples of the teacher and, of the first seed, of CM, Direct CM and direct>cm in each number of steps; same noise (fig2)."""
    group = distilled.group
    count = 64 if evaluation.study.is_image else count  # more than a figure shows
    out = {"teacher": evaluation.teacher_samples(group.solver, group.intervals, group.guidance[0])[:count]}
    end = distilled.updates[-1]
    by_steps = {k: evaluation.of_group(distilled, end, k, count) for k in steps if k <= group.intervals}
    for i, m in enumerate(group.members):
        name = method_name(m.horizon, group.intervals)
        if name in ("CM", "Direct CM", "direct>cm") and (m.guidance, m.seed) == (group.guidance[0], group.seeds[0]):
            out |= {f"{name}, {k} step{'s' * (k > 1)}": x[i] for k, x in by_steps.items()}
    return out


@torch.no_grad()
def target_on(
    study: Study, students: Students, member: int, paths: Tensor, n: int, h: int, c: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """(x_hat, target), each (B, *shape), of horizon `h` on the teacher's `paths` (n + 1, B, *shape) from x_{t_n} to data.

    The answer at x_hat is that of student number `member`; f is the identity at data.
    """
    x_hat, t_hat = paths[min(h, n)], torch.full(c.shape, grid.time(max(n - h, 0)), device=paths.device)
    return x_hat, study.f(students, x_hat[None], t_hat[None], c[None], members=slice(member, member + 1))[0]


def targets_to_show(
    study: Study, device: torch.device, distilled: DistilledGroup, count: int = 7
) -> tuple[Tensor, int, dict[str, tuple[Tensor, Tensor]]]:
    """Teacher trajectories from x_{t_n} and what CM and Direct CM regress on there (fig1).

    Returns (paths (n + 1, B, *shape), n, {method: (x_hat, target)}), with the first seed's distilled students.
    """
    group = distilled.group
    grid, n = Grid(group.intervals, study.teacher.schedule.T), max(1, round(0.8 * group.intervals))
    x, c = noised_data(study, 0, 12 if study.is_image else count, n, grid, device)
    paths = solve(study.teacher, x, n, c, group.guidance[0], group.solver, grid, trajectory=True).trajectory
    students = distilled.students(study, distilled.updates[-1], device)
    targets = {
        method_name(m.horizon, group.intervals): target_on(study, students, i, paths, n, m.horizon, c, grid)
        for i, m in enumerate(group.members)
        if m.horizon in (1, group.intervals) and (m.guidance, m.seed) == (group.guidance[0], group.seeds[0])
    }  # fmt: skip
    return paths, n, targets
