"""One row for every student, snapshot and number of sampling steps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dcm.evaluation.samples import EvaluationSet
from dcm.horizon import Group, Member, last_horizon, method_name
from dcm.support.files import RowStore
from dcm.support.progress import tqdm
from dcm.training.saved import DistilledGroup


def describe(name: str, group: Group, member: Member, update: int, steps: int) -> dict:
    """The columns that identify one measured student; ``horizon`` is the one at the end of its training."""
    return dict(
        group=name, solver=group.solver, intervals=group.intervals, guidance=member.guidance, horizon=last_horizon(member.horizon),
        method=method_name(member.horizon, group.intervals), seed=member.seed, update=update, steps=steps,
    )  # fmt: skip


KEY = ("fingerprint", "group", "guidance", "horizon", "method", "seed", "update", "steps")


def measure_students(
    evaluation: EvaluationSet,
    groups: Iterable[DistilledGroup],
    steps_of: Callable[[str], Sequence[int]],
    store: Path,
    measures: Sequence[str],
    measure: Callable,
) -> Iterator[dict]:
    """One row for every student, snapshot and number of sampling steps, in a fixed order.

    ``steps_of(name)`` has the numbers of sampling steps at the end of a group; snapshots are measured in one step.
    ``measure(x (B, *shape), group, member)`` returns the values of a row, by name. Finished rows are kept in
    `store`, and those that have all `measures` are not made again.
    """
    rows = RowStore(store, KEY, measures)
    work = [(g, update, k) for g in groups for update, k in g.sets(steps_of(g.name))]
    for g, update, k in tqdm(work, desc="students measured", unit="set"):
        mark = {"fingerprint": evaluation.mark(g.digest)}
        keys = [mark | describe(g.name, g.group, member, update, k) for member in g.group.members]
        if not all(key in rows for key in keys):
            for x, key, member in zip(evaluation.of_group(g, update, k), keys, g.group.members):
                if key not in rows:
                    rows.add(key | measure(x, g.group, member))
        for key in keys:
            yield {name: value for name, value in rows[key].items() if name != "fingerprint"}
