"""How hard must the teacher's map be for C2? The switch on mixtures of rising dimension and modes, and on other widths.

Everything else is equal, but for the learning rate, which is chosen for each cell's CM by the rule of
docs/preregistration.md; that page has the predictions. Rows are kept as they come, and a second call goes on:

python workflow/difficulty.py results/difficulty/metrics.csv
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd
import torch
from learning_rates import SEEDS, choose
from learning_rates import measure as rates_of

from dcm.evaluation.samples import EvaluationSet
from dcm.evaluation.students import describe
from dcm.metrics.metric import ode_error
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters, TeacherParameters
from dcm.studies.base import Study
from dcm.studies.registry import load_study, prepare_teacher
from dcm.support.errors import InputError
from dcm.support.files import project_path, write_text
from dcm.support.processes import find_device, ready_device
from dcm.training.run import train_group
from dcm.training.saved import DistilledGroup

RATES = (0.001, 0.003, 0.01)
METHODS = ["cm", "direct", "direct>cm", "cm>direct"]
TRAINING = dict(
    solver="ddim", intervals=10, guidance=[2.0], updates=800, pretrain=400, batch=128, lr_decay="linear", weight_decay=1e-4,
    ema=0.99, updates_per_solve=16, snapshots=1, samples=2048,
)  # fmt: skip


class Cell(NamedTuple):
    """A mixture and its students."""

    dimension: int
    modes_per_class: int  # "modes" is a metric
    width: int

    @property
    def run_dir(self) -> str:
        """Where its students lie."""
        return f"runs/difficulty/d{self.dimension}-m{self.modes_per_class}"


CELLS = [Cell(d, m, 64) for m in (4, 12) for d in (2, 4, 8, 16)] + [Cell(16, 12, width) for width in (32, 128, 256)]


def measure(cell: Cell, device) -> Iterator[dict]:
    """Rows of the cell's students, in one step: the ODE error at every snapshot, and all metrics at the end."""
    home = project_path(cell.run_dir)
    teacher = dict(study="gmm", run_dir=cell.run_dir, dimension=cell.dimension, modes=cell.modes_per_class, guidance=[2.0], intervals=[10])
    prepare_teacher(SimpleNamespace(p=validate(TeacherParameters, teacher), run_dir=home, device=device))
    study = load_study("gmm", home, device)

    def group(name: str, **more) -> DistillParameters:
        values = dict(TRAINING, study="gmm", run_dir=str(home), width=cell.width, group_name=f"w{cell.width}-{name}", **more)
        return validate(DistillParameters, values)

    tried = [group(f"{lr:g}", lr=lr, horizons=["cm"], seeds=SEEDS) for lr in RATES]
    rows = pd.DataFrame([row | {"group": "rates"} for p in tried for row in rates_of(study, p, 1024, device)])
    p = group("main", lr=float(choose(rows).lr.item()), horizons=METHODS, seeds=list(range(8)))
    for row in measured(study, home, train_group(study, p, device), p, device):
        yield cell._asdict() | {"lr": p.lr} | row | {"group": "main"}


def measured(study: Study, home: Path, trained: DistilledGroup, p: DistillParameters, device: torch.device) -> Iterator[dict]:
    """Rows of a group's students, in one step: the ODE error at every snapshot, and all metrics at the end."""
    evaluation = EvaluationSet(study, home, p.samples, p.evaluation_seed, device)
    solution = evaluation.teacher_samples(p.solver, p.intervals, p.guidance[0])
    for update in trained.updates:
        for x, member in zip(evaluation.of_group(trained, update, 1), trained.group.members):
            at_end = study.quality.measure(x, evaluation.condition, solution) if update == trained.updates[-1] else {}
            yield describe(trained.name, trained.group, member, update, 1) | {"ode_error": ode_error(x, solution)} | at_end


def main(arguments: list[str] | None = None) -> None:
    """Measure the cells that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the table of all rows")
    path = project_path(parser.parse_args(arguments).file)
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=Cell._fields)
    try:
        device = find_device("auto")
        ready_device(device, 1)
        for cell in CELLS:
            if not (rows[list(Cell._fields)] == list(cell)).all(axis=1).any():
                rows = pd.concat([rows, pd.DataFrame(measure(cell, device))] if len(rows) else [pd.DataFrame(measure(cell, device))])
                write_text(path, rows.to_csv(index=False, float_format="%.6g"))
                print(*cell, f"lr {rows.lr.iloc[-1]:g}", flush=True)
    except InputError as error:
        sys.exit(f"InputError: {error}")


if __name__ == "__main__":
    main()
