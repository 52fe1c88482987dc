"""The teacher's samples of a costly study, each of several processes making its own part."""

import sys

import torch

from dcm.evaluation.samples import EvaluationSet, sample_group
from dcm.parameters.notebooks import DistillParameters
from dcm.studies.base import Study
from dcm.support.files import project_path
from dcm.support.processes import Processes
from dcm.training.launch import joined, launch
from dcm.training.saved import DistilledGroup


def sample_in_processes(evaluation: EvaluationSet, distilled: DistilledGroup, p: DistillParameters) -> None:
    """:func:`~dcm.evaluation.samples.sample_group`, the teacher of a costly study in ``p.processes`` processes."""
    group, study = distilled.group, evaluation.study
    left = any(evaluation.missing(group.solver, group.intervals, w) for w in group.guidance)
    if study.costly and p.processes > 1 and left:
        study.to(torch.device("cpu"))  # the processes need the memory
        launch(p, "dcm.evaluation.share")
        study.to(evaluation.device)
    sample_group(evaluation, distilled, p.steps)


def sample_own_part(study: Study, p: DistillParameters, device: torch.device, processes: Processes) -> None:
    """What each process does."""
    evaluation = EvaluationSet(study, project_path(p.run_dir), p.samples, p.evaluation_seed, device)
    for w in p.guidance:
        evaluation.teacher_parts(p.solver, p.intervals, float(w), processes)
    processes.wait()


if __name__ == "__main__":
    joined(sys.argv[1], sample_own_part)
