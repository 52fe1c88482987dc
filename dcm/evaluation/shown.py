"""Samples and targets to be looked at."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcm.evaluation.samples import EvaluationSet
from dcm.evaluation.students import noised_data
from dcm.horizon import Group, method_name
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students.lockstep import Students
from dcm.studies.base import Study
from dcm.training.saved import DistilledGroup


def of_first_seed(group: Group) -> dict[str, int]:
    """By method, the number of the first seed's student at the main guidance scale."""
    where = group.guidance[0], group.seeds[0]
    return {method_name(m.horizon, group.intervals): i for i, m in enumerate(group.members) if (m.guidance, m.seed) == where}


def samples_to_show(
    evaluation: EvaluationSet, distilled: DistilledGroup, steps: Sequence[int], count: int = 1200
) -> dict[str, Tensor]:
    """Samples of the teacher and, of the first seed, of CM, Direct CM and direct>cm in each number of steps; same noise (fig2)."""
    group, end = distilled.group, distilled.updates[-1]
    count = 64 if evaluation.study.is_image else count  # more than a figure shows
    out = {"teacher": evaluation.teacher_samples(group.solver, group.intervals, group.guidance[0])[:count]}
    by_steps = {k: evaluation.of_group(distilled, end, k, count) for k in steps if k <= group.intervals}
    shown = {name: i for name, i in of_first_seed(group).items() if name in ("CM", "Direct CM", "direct>cm")}
    return out | {f"{name}, {k} step{'s' * (k > 1)}": x[i] for name, i in shown.items() for k, x in by_steps.items()}


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
        name: target_on(study, students, i, paths, n, group.members[i].horizon, c, grid)
        for name, i in of_first_seed(group).items()
        if name in ("CM", "Direct CM")
    }  # fmt: skip
    return paths, n, targets
