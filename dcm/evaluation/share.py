"""What evaluating a costly study takes, shared by several processes, one a GPU: sampling, and notebook 4's measuring.

No process waits for another: shares differ by more than the minutes for which NCCL is patient.
"""

import sys
from collections.abc import Iterator, Sequence

import torch

from dcm.evaluation.samples import EvaluationSet, sample_group, sample_students
from dcm.evaluation.students import KEY, keyed_sets, measure_students
from dcm.parameters.notebooks import DistillParameters, SampleQualityParameters
from dcm.studies.base import Study
from dcm.support.files import RowStore, project_path
from dcm.support.processes import ALONE, Processes
from dcm.training.launch import joined, launch
from dcm.training.saved import DistilledGroup, load_group, load_groups

STORE = "measured/quality.jsonl"
MEASURE = "measure"  # tells those that measure from those that sample


def shared(study: Study, p: DistillParameters | SampleQualityParameters, device: torch.device, *words: str) -> None:
    """Let ``p.processes`` processes do their shares first, of a costly study."""
    if study.costly and p.processes > 1:
        study.to(torch.device("cpu"))  # the processes need the memory
        launch(p, "dcm.evaluation.share", *words)
        study.to(device)


def sample_in_processes(evaluation: EvaluationSet, distilled: DistilledGroup, p: DistillParameters) -> None:
    """:func:`~dcm.evaluation.samples.sample_group`, of a costly study in ``p.processes`` processes."""
    group = distilled.group
    if any(evaluation.missing(group.solver, group.intervals, w) for w in group.guidance):
        shared(evaluation.study, p, evaluation.device)
    sample_group(evaluation, distilled, p.steps)


def sample_own_part(study: Study, p: DistillParameters, device: torch.device, processes: Processes) -> None:
    """What each process does of :func:`sample_in_processes`."""
    evaluation = EvaluationSet(study, project_path(p.run_dir), p.samples, p.evaluation_seed, device)
    for w in p.guidance:
        evaluation.teacher_parts(p.solver, p.intervals, float(w), processes)
    sample_students(evaluation, load_group(p.run_dir, p.group_name), p.steps, processes)


def measure_quality(evaluation: EvaluationSet, groups: Sequence[DistilledGroup], p: SampleQualityParameters) -> Iterator[dict]:
    """Every quality metric of the study, by :func:`~dcm.evaluation.students.measure_students`; one file takes all rows."""
    if p.processes > 1:
        rows = RowStore(evaluation.run_dir / STORE, KEY, list(evaluation.study.quality.metrics))
        if any(key not in rows for *_, keys in keyed_sets(evaluation, groups, p.steps_of, evaluation.study.measured_by) for key in keys):
            shared(evaluation.study, p, evaluation.device, MEASURE)
    return _measured(evaluation, groups, p)


def _measured(evaluation: EvaluationSet, groups: Sequence[DistilledGroup], p: SampleQualityParameters, processes: Processes = ALONE) -> Iterator[dict]:
    study = evaluation.study

    def measure(x, group, member):
        solution = evaluation.teacher_samples(group.solver, group.intervals, member.guidance)
        return study.quality.measure(x, evaluation.condition, solution)

    store, metrics = evaluation.run_dir / STORE, list(study.quality.metrics)
    return measure_students(evaluation, groups, p.steps_of, store, metrics, measure, processes, study.measured_by)


def measure_own_part(study: Study, p: SampleQualityParameters, device: torch.device, processes: Processes) -> None:
    """What each process does of :func:`measure_quality`."""
    evaluation = EvaluationSet(study, project_path(p.run_dir), p.samples, p.seed, device)
    list(_measured(evaluation, [*load_groups(p.run_dir, p.groups, p.main_group).values()], p, processes))


if __name__ == "__main__":
    joined(sys.argv[1], *((measure_own_part, SampleQualityParameters) if MEASURE in sys.argv else (sample_own_part, DistillParameters)))
