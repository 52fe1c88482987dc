"""Which part of the CM's objective does it? The switch with one part of its second half changed, and a guided CM steadied.

From equal weights, of the main group of a study whose notebook 1 has run: Direct then Direct and Direct then CM (part
``switch``), and CM then Direct and CM then CM (part ``from_cm``, without ``ema``):

- ``ema``: the CM's target is answered by an average of its weights, as Song et al. 2023 train; ``frozen``: by a CM that
  was trained before and stands still. In ``frozen`` the Direct CM's target is that CM's answer at the same point, so that
  it copies a CM by regression alone.
- ``features``, ``features_alone`` (images): the self-supervised encoder's distance beside the mean squared error, weighted
  so that both are equal at the switch, or in its place.

With ``--guided GROUP``, in a group with strong guidance that trains from its start: ``slow`` (a tenth of the rate),
``ema``, ``clipped`` (x_0 kept within the data's range), ``guided_start`` (mixtures: students begin as the guided
teacher), and ``steady``, all of them.

docs/preregistration.md has the predictions. Rows are kept as they come, and a second call goes on. ``--only`` names those
that are wanted, of which ``plain`` is one:

python workflow/interventions.py workflow/config/gmm16.yaml results/interventions/gmm16.csv --guided w9
python workflow/interventions.py workflow/config/cifar10.yaml results/interventions/cifar10.csv --only switch:plain switch:features
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from difficulty import measured
from torch import Tensor, nn

from dcm.consistency import ConsistencyFunction
from dcm.horizon import Batch, distance, horizon_target
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.parameters.study import StudyConfig, read_config
from dcm.students.lockstep import Students
from dcm.studies.base import Study
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import project_path, write_text
from dcm.support.processes import find_device, ready_device
from dcm.support.seeds import generator
from dcm.teacher import guided_noise
from dcm.training.run import train_group
from dcm.training.saved import load_group
from dcm.training.update import Objective

SWITCH = {"switch": ["direct", "direct>cm"], "from_cm": ["cm>direct", "cm"]}
GUIDED = ("slow", "ema", "clipped", "guided_start")


class AveragedTarget:
    """Targets by an exponential moving average of the students' weights, at `rate` an update."""

    def __init__(self, rate: float):
        self.rate = rate
        self.network: Students | None = None

    @torch.no_grad()
    def __call__(self, f: ConsistencyFunction, students: Students, batch: Batch) -> Tensor:
        """As :func:`dcm.horizon.horizon_target`."""
        if self.network is None:
            self.network = deepcopy(students).requires_grad_(False)
        for average, own in zip(self.network.parameters(), students.parameters()):
            average.lerp_(own, 1 - self.rate)
        return horizon_target(f, self.network, batch)


@dataclass
class FrozenTarget:
    """In the second half, answers of the students `cm`: where the teacher's step led, for the Direct CM at the point itself."""

    cm: Students  # one for every member
    updates: int

    @torch.no_grad()
    def __call__(self, f: ConsistencyFunction, students: Students, batch: Batch) -> Tensor:
        """As :func:`dcm.horizon.horizon_target`."""
        if batch.stage.last < self.updates:
            return horizon_target(f, students, batch)
        x, t = batch.x_hat.clone(), batch.t_hat.clone()
        size = len(x) // len(batch.stage.horizons)
        for i, h in enumerate(batch.stage.horizons):
            if h > 1:
                x[i * size : (i + 1) * size], t[i * size : (i + 1) * size] = (v[i * size : (i + 1) * size] for v in (batch.x, batch.t))
        return f(self.cm, x, t, batch.condition)


@dataclass
class FeatureDistance:
    """In the second half, the distance of an `encoder`'s features (B, F), beside the mean squared error or in its place."""

    encoder: nn.Module
    updates: int
    alone: bool
    changed: bool = False
    weight: float | None = None  # set at the switch

    def target(self, f: ConsistencyFunction, students: Students, batch: Batch) -> Tensor:
        """As :func:`dcm.horizon.horizon_target`; notes which half it is."""
        self.changed = batch.stage.last == self.updates
        return horizon_target(f, students, batch)

    def __call__(self, prediction: Tensor, target: Tensor, kind: str) -> Tensor:
        """As :func:`dcm.horizon.distance`, (M,)."""
        plain = distance(prediction, target, kind)
        if not self.changed:
            return plain
        of = lambda x: self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        seen = distance(of(prediction), of(target), "l2")
        if self.weight is None:
            self.weight = float(plain.detach().mean() / seen.detach().mean())
        return self.weight * seen if self.alone else plain + self.weight * seen


@dataclass(frozen=True)
class Clipped(ConsistencyFunction):
    """A consistency function whose x_0 stays within `bound`."""

    bound: float = float("inf")

    def denoise(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x0_hat, clipped."""
        return super().denoise(output, x, t).clamp(-self.bound, self.bound)


def guided_start(study: Study, guidance: float) -> Callable[..., None]:
    """``study.start_from_teacher`` for students that begin as the guided teacher."""
    guided, teacher = copy(study), study.teacher
    guided.teacher_id = f"{study.teacher_id}, w = {guidance:g}"  # its fit is kept apart
    predict_noise = lambda x, t, c: guided_noise(teacher, x, t, c, guidance)
    guided.teacher = SimpleNamespace(
        schedule=teacher.schedule, shape=teacher.shape, num_classes=teacher.num_classes, draw=teacher.draw, predict_noise=predict_noise
    )  # fmt: skip
    return guided.start_from_teacher


def objectives(study: Study, p: DistillParameters, home: Path, device: torch.device) -> Iterator[tuple[str, Objective]]:
    """What is changed in the second half, by name; ``plain`` comes first, since ``frozen`` needs its students."""
    yield "plain", Objective()
    if p.horizons == SWITCH["switch"]:
        yield "ema", Objective(AveragedTarget(p.ema))
    plain = load_group(home, p.group_name)
    students, seeds = plain.students(study, p.updates, device), len(p.seeds)
    ends = [h if isinstance(h, int) else h[-1][1] for h in plain.group.ordered]
    d, cm = (slice(i * seeds, (i + 1) * seeds) for i in (ends.index(p.intervals), ends.index(1)))
    students.requires_grad_(True).follow(d, cm)
    students.requires_grad_(False)
    yield "frozen", Objective(FrozenTarget(students, p.updates))
    if study.is_image:
        for name, alone in (("features", False), ("features_alone", True)):
            seen = FeatureDistance(study.quality.self_supervised.network, p.updates, alone)
            yield name, Objective(seen.target, seen)


def steadied(study: Study, p: DistillParameters, names: tuple[str, ...], device: torch.device) -> tuple[Study, DistillParameters, Objective]:
    """The training `p` with what `names` says, of :data:`GUIDED`."""
    study, objective = copy(study), Objective()
    if "slow" in names:
        p = p.model_copy(update={"lr": p.lr / 10})
    if "ema" in names:
        objective = Objective(AveragedTarget(p.ema))
    if "clipped" in names:
        x, _ = study.data.draw(generator(device, 0, "data"), 1 << 14)
        study.f = Clipped(**vars(study.f), bound=float(x.abs().max()))
    if "guided_start" in names:
        study.start_from_teacher = guided_start(study, p.guidance[0])
    return study, p, objective


def main(arguments: list[str] | None = None) -> None:
    """Measure what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("file", help="the table of all rows")
    parser.add_argument("--guided", help="a group of the study with strong guidance")
    parser.add_argument("--only", nargs="+", metavar="PART:INTERVENTION", help="in place of all")
    given = parser.parse_args(arguments)
    try:
        config = validate(StudyConfig, read_config(given.config))
        if given.guided not in (None, *config.groups):
            raise InputError(f"--guided {given.guided} is not possible; allowed: a group of the study: {', '.join(config.groups)}.")
        device, home, path = find_device(config.device), project_path(config.run_dir), project_path(given.file)
        ready_device(device, config.threads)
        study = load_study(config.study, home, device)
        rows = [pd.read_csv(path)] if path.exists() else []

        def run(part: str, name: str, study: Study, p: DistillParameters, objective: Objective) -> None:
            if given.only and f"{part}:{name}" not in given.only or any(((r.part == part) & (r.intervention == name)).any() for r in rows):
                return
            trained = train_group(study, p, device, objective=objective)
            rows.append(pd.DataFrame({"part": part, "intervention": name} | row for row in measured(study, home, trained, p, device)))
            write_text(path, pd.concat(rows).to_csv(index=False, float_format="%.6g"))
            print(part, name, flush=True)

        def group(of: str, name: str, **more) -> DistillParameters:
            # No checkpoints: they would not hold what an objective keeps, so that an interrupted training begins anew.
            own = {"group_name": f"intervention-{name}", "snapshots": 1, "run_dir": str(home), "checkpoint_seconds": 1e9}
            values = config.notebook("2_distill", of) | own | more
            return validate(DistillParameters, values)

        for part, horizons in SWITCH.items():
            if given.only and f"{part}:plain" not in given.only:
                continue  # the others need its students
            own = lambda name: group(config.main_group, name if part == "switch" else f"{part}-{name}", horizons=horizons)
            for name, objective in objectives(study, own("plain"), home, device):
                run(part, name, study, own(name), objective)
        for names in ((), *((n,) for n in GUIDED), GUIDED) if given.guided else ():
            if study.is_image and "guided_start" in names:
                continue
            name = "plain" if not names else names[0] if len(names) == 1 else "steady"
            run("guided", name, *steadied(study, group(given.guided, f"guided-{name}"), names, device))
    except InputError as error:
        sys.exit(f"InputError: {error}")


if __name__ == "__main__":
    main()
