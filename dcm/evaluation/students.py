"""One row for every student, snapshot and number of sampling steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from dcm.evaluation.samples import EvaluationSet
from dcm.horizon import Group, Member, method_name
from dcm.studies.base import Study
from dcm.support.files import fingerprint
from dcm.support.progress import tqdm
from dcm.support.rows import RowStore
from dcm.support.threads import in_threads
from dcm.training.saved import DistilledGroup, load_group


def describe(name: str, group: Group, member: Member, update: int, steps: int) -> dict:
    """The columns that identify one measured student."""
    return dict(
        group=name, solver=group.solver, intervals=group.intervals, guidance=member.guidance, horizon=member.horizon,
        method=method_name(member.horizon, group.intervals), seed=member.seed, update=update, steps=steps,
    )  # fmt: skip


KEY = ("fingerprint", "group", "guidance", "horizon", "seed", "update", "steps")
KEPT = 1 << 26  # bytes of one set of students' samples that are still worth their room on the disk


def _samples_of(evaluation: EvaluationSet, g: DistilledGroup, mark: str, update: int, steps: int) -> Tensor:
    """Samples (M, B, *shape) of a group's students; kept in ``run_dir/evaluation``, since two notebooks ask for them."""

    def make() -> Tensor:
        students = g.students(evaluation.study, update, evaluation.device)
        return evaluation.student_samples(students, g.group.intervals, steps)

    size = 4 * len(g.group.members) * evaluation.samples * math.prod(evaluation.study.teacher.shape)
    if evaluation.study.costly or size > KEPT:
        return make()
    return evaluation.cached(f"students-{g.name}-{update}-{steps}-{mark}", make)


def measure_students(
    study: Study,
    evaluation: EvaluationSet,
    groups: dict[str, list[int]],
    store: Path,
    measure,
    last_first: bool = False,
    workers: int = 1,
) -> Iterator[dict]:
    """One row for every student, snapshot and number of sampling steps; rows found in `store` are not made again.

    Parameters
    ----------
    groups : numbers of sampling steps to measure by name of group; snapshots before the end are measured in one step.
    store : where finished rows are kept. ``measure(x (B, *shape), group, member)`` returns the
    values of a row. last_first : begin at the end; two notebooks that run side by side, one from either end, then
    sample half of the students each and read the other half. workers : threads that call `measure`, which must allow
    it. Yields the rows in a fixed order.
    """
    rows = RowStore(store, KEY)
    work = []
    for name, steps in groups.items():
        g = load_group(evaluation.run_dir, name)
        mark = fingerprint(g.path, study.teacher_id, evaluation.samples, evaluation.seed)
        for update in g.updates:
            for k in steps if update == g.updates[-1] else [1]:
                if k <= g.group.intervals:
                    keys = [{"fingerprint": mark} | describe(name, g.group, m, update, k) for m in g.group.members]
                    work.append((g, mark, update, k, keys))

    def missing() -> Iterator[tuple]:  # sampled as they are asked for
        for g, mark, update, k, keys in tqdm(work[::-1] if last_first else work, desc="students measured", unit="set"):
            if not all(key in rows for key in keys):
                x = _samples_of(evaluation, g, mark, update, k)
                yield from (
                    (key, (x_m, g.group, member))
                    for x_m, key, member in zip(x, keys, g.group.members)
                    if key not in rows
                )

    for key, values in in_threads(lambda job: (job[0], measure(*job[1])), missing(), workers):
        rows.add(key | values)
    for *_, keys in work:
        for key in keys:
            yield {name: value for name, value in rows[key].items() if name != "fingerprint"}
