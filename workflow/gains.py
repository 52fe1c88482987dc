"""Is it linear blur? Samples of the main group's students, filtered to another power spectrum, and measured again.

Every frequency gets one gain, fitted on samples from other noise: of all students such that they have the teacher's
spectrum, of those that end as a CM also such that they have that of the Direct CM that they are compared with.
docs/preregistration.md has the prediction. After a study's notebooks, on the same machine:

python workflow/gains.py workflow/config/digits.yaml
"""

import argparse
import sys
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from dcm.analysis.switch import SWITCH
from dcm.evaluation.samples import EvaluationSet
from dcm.evaluation.students import KEY, describe
from dcm.metrics.distances import frequencies, radial_power
from dcm.parameters.check import validate
from dcm.parameters.study import StudyConfig, read_config
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import RowStore, project_path, write_csv
from dcm.support.processes import find_device, ready_device
from dcm.training.saved import DistilledGroup, load_group

TEACHER = "teacher"


def with_gains(x: Tensor, gains: Tensor) -> Tensor:
    """Images (B, C, H, W) whose every frequency 1, 2, .. is scaled by its own of `gains` (R,), those above R by the last.

    The mean stays. With the root of a quotient of two :func:`radial_power` it is the linear filter from one spectrum to
    the other.
    """
    of = torch.cat([gains.new_ones(1), gains])[frequencies(x).clamp(max=len(gains))]
    return torch.fft.ifft2(torch.fft.fft2(x.double()) * of).real.to(x.dtype)


def measure(evaluation: EvaluationSet, distilled: DistilledGroup, fitted_on: int) -> Iterator[dict]:
    """A row a student and spectrum (column ``spectrum``, a method or ``teacher``), in one step at the end of training.

    `fitted_on` : samples that gains are fitted on; their noise is of the evaluation's seed + 1.
    """
    group, update, study = distilled.group, distilled.updates[-1], evaluation.study
    fitting = EvaluationSet(study, evaluation.run_dir / "gains", fitted_on, evaluation.seed + 1, evaluation.device)
    spectra, samples, w = {}, None, group.guidance[0]
    solution = lambda of: of.teacher_samples(group.solver, group.intervals, w)
    rows = RowStore(evaluation.run_dir / "measured/gains.jsonl", (*KEY, "spectrum"), study.quality.metrics)
    mark = {"fingerprint": evaluation.mark(distilled.digest, fitted_on)}
    about = [describe(distilled.name, group, m, update, 1) for m in group.members]
    for i, own in enumerate(about):
        if own["guidance"] != w:
            continue
        direct = [a for a, b in SWITCH.values() if b == own["method"] and a in {other["method"] for other in about}]
        for target in (TEACHER, *direct):
            key = mark | own | {"spectrum": target}
            if key not in rows:
                if samples is None:
                    samples = evaluation.of_group(distilled, update, 1)
                    for other, x in zip(about, fitting.of_group(distilled, update, 1)):
                        spectra[other["method"], other["guidance"], other["seed"]] = radial_power(x)
                    teacher = radial_power(solution(fitting))
                wanted = teacher if target == TEACHER else spectra[target, w, own["seed"]]
                there = spectra[own["method"], w, own["seed"]]
                x = with_gains(samples[i], (wanted / there).sqrt())
                rows.add(key | study.quality.measure(x, evaluation.condition, solution(evaluation)))
            yield {name: value for name, value in rows[key].items() if name != "fingerprint"}


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write ``gains.csv`` beside the study's other results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--fitted-on", type=int, default=2000, help="samples that gains are fitted on")
    given = parser.parse_args(arguments)
    try:
        config = validate(StudyConfig, read_config(given.config))
        if config.study not in ("digits", "cifar10"):
            raise InputError(f"study = {config.study!r} is not possible; allowed: digits or cifar10, whose samples are small images.")
        device, home = find_device(config.device), project_path(config.run_dir)
        ready_device(device, config.threads)
        distilled, p = load_group(home, config.main_group), config.notebook("4_sample_quality")
        evaluation = EvaluationSet(load_study(config.study, home, device), home, p["samples"], p["seed"], device)
        table = pd.DataFrame(measure(evaluation, distilled, given.fitted_on))
        write_csv(project_path(config.results_dir) / "gains.csv", table)
    except InputError as error:
        sys.exit(f"InputError: {error}")
    print(f"{len(table)} rows in {config.results_dir}/gains.csv")


if __name__ == "__main__":
    main()
