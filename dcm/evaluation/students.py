"""Rows of measured students: one for every snapshot and number of sampling steps, and one for every starting time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dcm.evaluation.samples import EvaluationSet
from dcm.horizon import Group, Member, last_horizon, method_name
from dcm.metrics.metric import ode_error
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.studies.base import Study
from dcm.support.files import RowStore
from dcm.support.processes import ALONE, Processes
from dcm.support.progress import tqdm
from dcm.support.seeds import generator, sample_noise
from dcm.training.saved import DistilledGroup


def describe(name: str, group: Group, member: Member, update: int, steps: int) -> dict:
    """The columns that identify one measured student; ``horizon`` is the one at the end of its training."""
    return dict(
        group=name, solver=group.solver, intervals=group.intervals, guidance=member.guidance, horizon=last_horizon(member.horizon),
        method=method_name(member.horizon, group.intervals), seed=member.seed, update=update, steps=steps,
    )  # fmt: skip


KEY = ("fingerprint", "group", "guidance", "horizon", "method", "seed", "update", "steps")


def keyed_sets(
    evaluation: EvaluationSet, groups: Iterable[DistilledGroup], steps_of: Callable[[str], Sequence[int]], by: str = ""
) -> list[tuple[DistilledGroup, int, int, list[dict]]]:
    """Group, update, number of sampling steps, and the keys of their rows, of every set that :func:`measure_students` measures."""
    key = lambda g, member, update, k: {"fingerprint": evaluation.mark(g.digest, by)} | describe(g.name, g.group, member, update, k)
    sets = [(g, update, k) for g in groups for update, k in g.sets(steps_of(g.name))]
    return [(g, update, k, [key(g, member, update, k) for member in g.group.members]) for g, update, k in sets]


def measure_students(
    evaluation: EvaluationSet, groups: Iterable[DistilledGroup], steps_of: Callable[[str], Sequence[int]], store: Path,
    measures: Sequence[str], measure: Callable, processes: Processes = ALONE, by: str = "",
) -> Iterator[dict]:  # fmt: skip
    """One row for every student, snapshot and number of sampling steps, in a fixed order.

    ``steps_of(name)`` has the numbers of sampling steps at the end of a group; snapshots are measured in one step.
    ``measure(x (B, *shape), group, member)`` returns the values of a row, by name. Finished rows are kept in
    `store`, and those that have all `measures`, made `by` the same, are not made again. Of several `processes` each takes its
    share of the sets.
    """
    rows = RowStore(store, KEY, measures)
    work = keyed_sets(evaluation, groups, steps_of, by)[processes.rank :: processes.size]
    for g, update, k, keys in tqdm(work, desc="students measured", unit="set", disable=not processes.first):
        if not all(key in rows for key in keys):
            for x, key, member in zip(evaluation.of_group(g, update, k), keys, g.group.members):
                if key not in rows:
                    rows.add(key | measure(x, g.group, member))
        for key in keys:
            yield {name: value for name, value in rows[key].items() if name != "fingerprint"}


def noised_data(study: Study, seed: int, count: int, n: int, grid: Grid, device) -> tuple[Tensor, Tensor]:
    """Data noised to grid index n: x_{t_n} (B, *shape) and classes (B,); the same data and noise for every n."""
    x_0, condition = study.data.draw(generator(device, seed, "reference", 1), count)
    noise = sample_noise(seed, "reference", range(count), study.teacher.shape).to(device)
    return study.teacher.schedule.add_noise(x_0, noise, torch.full((count,), grid.time(n), device=device)), condition


@torch.no_grad()
def error_by_starting_time(
    evaluation: EvaluationSet, distilled: DistilledGroup, start_times: int, start_samples: int
) -> Iterator[dict]:
    """One-step errors of CM and Direct CM from x_{t_n}, and the solver's own, for `start_times` evenly spaced n (fig9).

    Yields rows with t and mean squared errors: student_error (student against the teacher's solution), solver_error
    (the teacher's solution against the reference) and total_error (student against the reference).
    """
    group, study, device = distilled.group, evaluation.study, evaluation.device
    grid, w = Grid(group.intervals, study.teacher.schedule.T), group.guidance[0]
    ends = [i for i, m in enumerate(group.members) if m.guidance == w and m.horizon in (1, group.intervals)]
    students = distilled.students(study, distilled.updates[-1], device)
    indices = sorted({max(1, round(group.intervals * k / start_times)) for k in range(1, start_times + 1)})
    for n in tqdm(indices, desc="starting times", unit="time"):
        x, c = noised_data(study, evaluation.seed, start_samples, n, grid, device)
        solution = solve(study.teacher, x, n, c, w, group.solver, grid).x
        reference = study.reference(x, n, c, w, grid)
        t = torch.full(c.shape, grid.time(n), device=device)
        answers = study.f(students, *(v.expand(students.size, *v.shape) for v in (x, t, c)))
        for i in ends:
            yield describe(distilled.name, group, group.members[i], distilled.updates[-1], 1) | {
                "t": grid.time(n),
                "student_error": ode_error(answers[i], solution),
                "solver_error": ode_error(solution, reference),
                "total_error": ode_error(answers[i], reference),
            }
