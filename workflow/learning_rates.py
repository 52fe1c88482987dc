"""Choose learning rates by the rule of docs/preregistration.md, on seeds that no study measures.

For each method it is the rate at which its own ODE error is lowest at the end of its training, on the mean over the
seeds; of two equally good ones the lower. Students are trained as a group of the study is, but for rate and seeds:

python workflow/learning_rates.py workflow/config/gmm.yaml --lr 5e-4 1e-3 2e-3
"""

import argparse
import json
import sys
from types import SimpleNamespace

import pandas as pd

from dcm.evaluation.samples import EvaluationSet
from dcm.evaluation.students import describe
from dcm.metrics.metric import ode_error
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters, TeacherParameters
from dcm.parameters.study import StudyConfig, read_config
from dcm.studies.base import teacher_record
from dcm.studies.registry import load_study, prepare_teacher
from dcm.support.errors import InputError
from dcm.support.files import project_path, write_text
from dcm.support.processes import find_device, ready_device
from dcm.training.run import train_group

SEEDS = [1000, 1001, 1002]
CHOSEN = ["group", "solver", "intervals", "guidance", "method"]


def measure(study, p: DistillParameters, samples: int, device) -> list[dict]:
    """Train the group of `p`; its ODE errors at every snapshot, a row a student."""
    trained = train_group(study, p, device)
    evaluation = EvaluationSet(study, project_path(p.run_dir), samples, p.evaluation_seed, device)
    rows = []
    for update in trained.updates:
        x = evaluation.student_samples(trained.students(study, update, device), p.intervals, steps=1)
        for x_m, member in zip(x, trained.group.members):
            solution = evaluation.teacher_samples(p.solver, p.intervals, member.guidance)
            row = describe(p.group_name, trained.group, member, update, 1)
            rows.append(row | {"lr": p.lr, "ode_error": ode_error(x_m, solution)})
    return rows


def choose(rows: pd.DataFrame) -> pd.DataFrame:
    """The chosen rate of every setting and method, with its error at the end and whether that fell to the end.

    `rows` : of :func:`measure`. ``stable`` says whether the mean error at the end is no higher than at any snapshot.
    """
    means = rows.groupby([*CHOSEN, "lr", "update"])["ode_error"].mean().reset_index()
    ends = means[means["update"] == means.groupby(["group", "lr"])["update"].transform("max")]
    best = ends.sort_values(["ode_error", "lr"], kind="stable").groupby(CHOSEN, sort=True).head(1)
    lowest = means.groupby([*CHOSEN, "lr"])["ode_error"].min().rename("lowest").reset_index()
    best = best.merge(lowest, on=[*CHOSEN, "lr"])
    return best.assign(stable=best.ode_error <= best.lowest).drop(columns="lowest").sort_values(CHOSEN, ignore_index=True)


def main(arguments: list[str] | None = None) -> None:
    """Train at every rate, keep the rows as they come, print the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--group", nargs="+", help="of the configuration; its main group when left out")
    parser.add_argument("--lr", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--samples", type=int, default=1024)
    names_and_values = lambda text: dict(json.loads(text))
    parser.add_argument("--set", metavar="JSON", type=names_and_values, default="{}", help="other parameters of notebook 2, such as '{\"updates\": 600}'")
    given = parser.parse_args(arguments)
    try:
        config = validate(StudyConfig, read_config(given.config))
        names, every = given.group or [config.main_group], []
        for name in names:
            if name not in config.groups:
                raise InputError(f"group = {name!r} is not in {given.config}; allowed: {', '.join(config.groups)}.")
            of_group = config.notebook("2_distill", name) | {"horizons": ["cm", "direct"], "seeds": given.seeds}
            of_group |= given.set | {"run_dir": f"{config.run_dir}/rates"}
            own = [of_group | {"lr": lr, "group_name": f"{name}-{lr:g}"} for lr in given.lr]
            every += [(name, validate(DistillParameters, values)) for values in own]
        home = project_path(config.run_dir)
        device = find_device(config.device)
        ready_device(device, config.threads)
        if not teacher_record(home):
            own = validate(TeacherParameters, config.notebook("1_teacher"))
            prepare_teacher(SimpleNamespace(p=own, run_dir=home, device=device))
        study, rows = load_study(config.study, home, device), []
        for name, p in every:
            rows += [row | {"group": name} for row in measure(study, p, given.samples, device)]
            table = pd.DataFrame(rows)
            write_text(home / "rates" / f"{'-'.join(names)}.csv", table.to_csv(index=False))
    except InputError as error:
        sys.exit(f"InputError: {error}")
    print(table.pivot_table(index=["group", "method", "lr"], columns="update", values="ode_error").to_string(float_format="%.4g"))
    print(choose(table).to_string(index=False))


if __name__ == "__main__":
    main()
