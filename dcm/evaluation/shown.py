"""Samples and targets to be looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from dcm.evaluation.by_time import noised_data
from dcm.evaluation.samples import EvaluationSet
from dcm.horizon import method_name
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.studies.base import Study
from dcm.training.saved import DistilledGroup


def samples_to_show(
    study: Study, evaluation: EvaluationSet, distilled: DistilledGroup, steps: list[int], count: int = 1200
) -> dict[str, Tensor]:
    """Samples of the teacher and, of the first seed, of CM and Direct CM in each number of steps; same noise (fig2)."""
    group = distilled.group
    count = 64 if study.is_image else count  # more than a figure shows
    students = distilled.students(study, distilled.updates[-1], evaluation.device)
    out = {"teacher": evaluation.teacher_samples(group.solver, group.intervals, group.guidance[0])}
    first = [i for i in group.ends if group.members[i].seed == group.seeds[0]]
    by_steps = {
        k: evaluation.student_samples(students, group.intervals, k, count) for k in steps if k <= group.intervals
    }
    for i in first:
        for k, x in by_steps.items():
            out[f"{method_name(group.members[i].horizon, group.intervals)}, {k} step{'s' * (k > 1)}"] = x[i]
    return {label: x[:count] for label, x in out.items()}


@torch.no_grad()
def targets_to_show(
    study: Study, device: torch.device, distilled: DistilledGroup, count: int = 7
) -> tuple[Tensor, int, dict[str, tuple[Tensor, Tensor]]]:
    """Teacher trajectories from x_{t_n} and what CM and Direct CM regress on there (fig1).

    Returns (paths (n + 1, B, *shape), n, {method: (x_hat, target)}), with the first seed's distilled students.
    """
    group = distilled.group
    grid, w = Grid(group.intervals, study.teacher.schedule.T), group.guidance[0]
    n = max(1, round(0.8 * group.intervals))
    x, c = noised_data(study, 0, 12 if study.is_image else count, n, grid, device)
    paths = solve(study.teacher, x, n, c, w, group.solver, grid, trajectory=True).trajectory
    students = distilled.students(study, distilled.updates[-1], device)
    targets = {}
    for i in group.ends:
        member = group.members[i]
        if member.seed == group.seeds[0]:
            h = min(member.horizon, n)
            x_hat, t_hat = paths[h], torch.full(c.shape, grid.time(n - h), device=device)
            answer = study.f(students, x_hat[None], t_hat[None], c[None], members=slice(i, i + 1))[0]
            targets[method_name(member.horizon, group.intervals)] = (x_hat, answer)
    return paths, n, targets
