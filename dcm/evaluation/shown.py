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


def of_first_seed(group: Group, *methods: str) -> dict[str, int]:
    """By those `methods` that a group has, the number of the first seed's student at the main guidance scale."""
    where, N = (group.guidance[0], group.seeds[0]), group.intervals
    first = {method_name(m.horizon, N): i for i, m in enumerate(group.members) if (m.guidance, m.seed) == where}
    return {name: i for name, i in first.items() if name in methods}


def samples_to_show(evaluation: EvaluationSet, distilled: DistilledGroup, steps: Sequence[int]) -> dict[str, Tensor]:
    """Samples of the teacher and, of the first seed, of CM, Direct CM and direct>cm in each number of steps; same noise (fig2)."""
    group, end, rows = distilled.group, distilled.updates[-1], evaluation.shown
    out = {"teacher": evaluation.teacher_samples(group.solver, group.intervals, group.guidance[0])[rows]}
    by_steps = {k: evaluation.of_group(distilled, end, k, rows) for k in steps if k <= group.intervals}
    shown = of_first_seed(group, "CM", "Direct CM", "direct>cm")
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


def apart(paths: Tensor, count: int) -> list[int]:
    """Numbers of `count` of the trajectories (n + 1, B, *shape) that a figure can tell apart: the longest, then the farthest from those."""
    ends = paths[[0, -1]].flatten(2)
    gaps = torch.cdist(ends.flatten(0, 1), ends.flatten(0, 1)).unflatten(0, (2, -1)).unflatten(2, (2, -1)).amin((0, 2))
    chosen = [int((ends[0] - ends[1]).norm(dim=1).argmax())]
    while len(chosen) < count:
        chosen.append(int(gaps[chosen].amin(0).argmax()))
    return chosen


def targets_to_show(
    study: Study, device: torch.device, distilled: DistilledGroup
) -> tuple[Tensor, int, dict[str, tuple[Tensor, Tensor]]]:
    """Teacher trajectories from x_{t_n} and what CM and Direct CM regress on there (fig1).

    Returns (paths (n + 1, B, *shape), n, {method: (x_hat, target)}), with the first seed's distilled students.
    """
    group = distilled.group
    grid, n = Grid(group.intervals, study.teacher.schedule.T), max(1, round(0.8 * group.intervals))
    x, c = noised_data(study, 0, 12 if study.is_image else 48, n, grid, device)
    paths = solve(study.teacher, x, n, c, group.guidance[0], group.solver, grid, trajectory=True).trajectory
    if not study.is_image:
        rows = apart(paths, 6)
        paths, c = paths[:, rows], c[rows]
    students, shown = distilled.students(study, distilled.updates[-1], device), of_first_seed(group, "CM", "Direct CM")
    horizon = lambda i: group.members[i].horizon
    return paths, n, {name: target_on(study, students, i, paths, n, horizon(i), c, grid) for name, i in shown.items()}
