"""Measured runs, read back from the folders that notebooks left, and what their students are compared by."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter

from dcm.analysis.compare import UNSTABLE, verdicts, where_stable
from dcm.analysis.measured import SETTING, measured, with_final
from dcm.metrics.metric import ENCODERS, Metric
from dcm.parameters.check import validate
from dcm.parameters.kinds import Name, StudyName
from dcm.parameters.notebooks import DistillParameters
from dcm.support.errors import InputError, why
from dcm.support.files import project_path, read_json

SETTING_OF_RUN = ["run", *SETTING]
REGIME = [*SETTING_OF_RUN, "update", "steps"]
STUDIES = TypeAdapter(dict[Name, StudyName])  # by run: the file studies.json
NAMING = set("solver intervals loss lora_rank width lr lr_decay pairs_per_trajectory".split())  # what regimes differ in


@dataclass(frozen=True)
class Results:
    """What a folder holds of one run.

    `teacher`: notebook 1's parameters. `groups`: notebook 2's. `main`: the main group's name. `rows`: as in metrics.csv,
    with the columns ``run`` and ``final``. `records`: what the notebooks noted of themselves. `gains`: what
    workflow/gains.py measured, where it did.
    """

    name: str
    study: str
    teacher: dict
    groups: dict[str, DistillParameters]
    main: str
    rows: pd.DataFrame
    records: dict[str, dict] = field(default_factory=dict)
    gains: pd.DataFrame | None = None


def load(folder: str) -> list[Results]:
    """The runs of a folder: one that notebooks 1 to 4 left, or those behind the results of notebook 5 or 7.

    Results need no students, so what was measured on a GPU can be analysed anew without one. Raises :class:`InputError`.
    """
    path = project_path(folder)
    if not any((path / name).exists() for name in ("metrics.csv", "provenance.json", "studies.json")):
        return [_of_run(folder, path)]
    try:
        return _of_results(path)
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:  # it may be another's
        raise InputError(f"{path} is no whole results folder of notebook 5 or 7 ({why(error)}).") from None


def _of_run(folder: str, path: Path) -> Results:
    noted = {p.stem: read_json(p) for p in sorted((path / "provenance").glob("*.json"))}
    if "1_teacher" not in noted:
        first = f"run notebooks 1 to 4 with run_dir = {folder!r} first"
        raise InputError(f"{folder}/provenance/1_teacher.json does not exist; {first}.")
    rows = measured(path, ())
    # Not notebook 5's, nor a group's that is no longer among them.
    there = {f"2_distill-{name}" for name in rows.group.unique()}
    return _joined(path.name, {k: r for k, r in noted.items() if k[0] in "134" or k in there}, rows)


def _of_results(path: Path) -> list[Results]:
    rows = pd.read_csv(path / "metrics.csv", dtype={"group": str})
    records = read_json(path / "provenance.json")["notebooks"]
    if not (path / "studies.json").exists():
        gains = path / "gains.csv"
        text = {"method": str, "spectrum": str}
        filtered = pd.read_csv(gains, dtype={"group": str}).astype(text) if gains.exists() else None
        return [_joined(path.name, records, rows, filtered)]
    studies, found = STUDIES.validate_json((path / "studies.json").read_text()), []
    for run in studies:
        own = {k.removeprefix(f"{run}/"): r for k, r in records.items() if k.startswith(f"{run}/")}
        found.append(_joined(run, own, rows[rows.run == run].dropna(axis="columns", how="all")))
    if {r.name: r.study for r in found} != studies:
        raise ValueError("the runs are of other studies")
    return found


def _joined(run: str, records: dict, rows: pd.DataFrame, gains: pd.DataFrame | None = None) -> Results:
    ran = {name: record["parameters"] for name, record in records.items()}
    students = {name.split("-", 1)[1]: p for name, p in ran.items() if name.startswith("2_distill-")}
    groups = {name: validate(DistillParameters, p) for name, p in students.items()}
    main = ran.get("5_figures", {}).get("main_group", "main" if "main" in groups else next(iter(groups), None))
    known = main in groups and all(p.group_name == name for name, p in groups.items())  # which is checked
    if not known or not set(groups) <= set(rows.group):
        raise ValueError(f"the rows of {run} and what is said of them do not fit together")
    rows = with_final(rows[rows.group.isin(groups)]).assign(run=run)
    return Results(run, ran["1_teacher"]["study"], ran["1_teacher"], groups, main, rows, records, gains)


def measures(study: str) -> dict[str, tuple[str, Metric]]:
    """What a study's students are compared by: (role, metric) by column.

    Roles: ``error``, ``features`` (the error after an encoder), ``teacher`` and ``data`` (distances to their samples).
    """
    found, distances = [("ode_error", "error", "ODE error")], ENCODERS[study]
    if study == "gmm":  # of points the features are the points
        found.append(("frechet", "further", "distance to teacher, Frechet"))
        distances = {"sliced Wasserstein": ("swd_teacher", "swd_data", "")}
    found += [(error, "features", f"ODE error, {name} features") for name, (_, _, error) in distances.items()]
    for name, (teacher, data, _) in distances.items():
        found += [(teacher, "teacher", f"distance to teacher, {name}"), (data, "data", f"distance to data, {name}")]
    return {column: (role, Metric(label, ratio=True)) for column, role, label in found if column}


def judged(study: str, rows: pd.DataFrame, by: list[str], pair: str, methods: tuple[str, str]) -> pd.DataFrame:
    """:func:`dcm.analysis.compare.verdicts` on :func:`measures`, with columns ``study``, ``pair``, ``role`` and ``label``."""
    asked = measures(study)
    metrics = {name: metric for name, (role, metric) in asked.items() if role != "error"}
    table = verdicts(rows, metrics, by, methods)
    if not len(table):
        return table
    each = [asked[name] for name in table.metric]
    return table.assign(study=study, pair=pair, role=[role for role, _ in each], label=[metric.label for _, metric in each])


def regimes(results: Results) -> pd.DataFrame:
    """Direct CM against CM in every regime, the main group's first: :func:`judged`, with ``regime`` (a name) and ``cm``.

    Regimes are the ends of trainings, in one sampling step and in several; those without an ODE error, since fresh noise
    leads them off the solution that they would be compared with. In one step the snapshots of groups whose learning rate is
    constant are regimes as well: each ends a training of its own length. ``cm`` is the CM's stability up to there. Where it
    is not stable there is no verdict; runs that kept no snapshot cannot say.
    """
    rows, groups = results.rows, results.groups
    constant = rows.group.map({name: p.lr_decay == "constant" for name, p in groups.items()})
    ends = rows[rows.final | (constant & (rows.steps == 1))]
    table = judged(results.study, ends.assign(ode_error=ends.ode_error.where(ends.steps == 1)), REGIME, "Direct CM / CM", ("Direct CM", "CM"))
    if not len(table):
        return table
    until = lambda update: rows[rows["update"] <= update]
    each = [where_stable(own, until(u), SETTING_OF_RUN, [UNSTABLE]) for u, own in table.groupby("update")]
    table = pd.concat(each).sort_index().sort_values("group", key=lambda g: g != results.main, kind="stable", ignore_index=True)
    at = {name: p.model_dump(include=NAMING) for name, p in groups.items()}
    full = lambda group, w, update, steps: at[group] | {"guidance": f"{w:g}", "update": update, "steps": steps}
    p = groups[results.main]
    main = full(results.main, p.guidance[0], p.updates, 1)

    def named(r) -> str:
        own = full(r.group, r.guidance, r.update, r.steps)
        return ", ".join(f"{name} {value}" for name, value in own.items() if value != main[name]) or "main"

    return table.assign(regime=[named(row) for row in table.itertuples()])
