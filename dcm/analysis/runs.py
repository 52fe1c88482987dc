"""Runs whose regimes are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter
from torch import Tensor

from dcm.analysis import compare
from dcm.analysis.measured import SETTING, measured, with_columns, with_final
from dcm.metrics.metric import Metric
from dcm.parameters.check import validate
from dcm.parameters.kinds import Name, StudyName
from dcm.parameters.notebooks import DistillParameters
from dcm.solvers import SOLVER_NAMES
from dcm.studies.base import Study
from dcm.studies.registry import load_study
from dcm.support.errors import InputError, why
from dcm.support.files import project_path, read_json, read_tensors
from dcm.training.saved import load_group

SETTING_OF_RUN = ["run", *SETTING]
REGIME = [*SETTING_OF_RUN, "update", "steps"]
DATA_METRIC = {"swd_teacher": "swd_data", "fd_teacher": "fd_real"}  # the primary metric's sibling: against data
# The same two, by further encoders.
FURTHER = {f"fd_{name}": f"fd_{name}_real" for name in ("classifier", "pixels", "self")} | {"fid_teacher": "fid_real"}
NAMES = {  # of what regimes differ in
    "solver": lambda v: SOLVER_NAMES[v], "intervals": "N = {}".format, "guidance": "w = {:g}".format,
    "loss": lambda v: {"huber": "pseudo-Huber", "l2": "L2"}[v], "lora_rank": "LoRA rank {}".format, "width": "width {}".format,
    "lr": "lr {:g}".format, "lr_decay": "{} lr".format, "updates": "{} updates".format, "pairs_per_trajectory": "{} pairs a trajectory".format,
}  # fmt: skip
SHOWN = 16  # samples of each kind that its figures show


@dataclass(frozen=True)
class Facts:
    """What tables and figures need to know of a study, without its teacher.

    Attributes
    ----------
    shape : of a sample. modes : of each class, where the teacher is a mixture. primary, metrics : as the study's quality
        has them; the primary one is a distance to the teacher's samples, and the effect of C2 is about it.
    """

    study: StudyName  # which names files
    shape: tuple[int, ...]
    modes: int | None
    primary: str
    metrics: dict[str, Metric]

    @classmethod
    def of(cls, study: Study) -> Facts:
        """Those of a loaded study."""
        t = study.teacher
        modes = len(t.labels) // t.num_classes if study.exact else None
        return cls(study.name, tuple(t.shape), modes, study.quality.primary, study.quality.metrics)


FACTS = TypeAdapter(dict[Name, Facts])  # by run: the file studies.json


@dataclass
class Run:
    """What notebooks 1 to 4 left in one run folder.

    Attributes
    ----------
    name : of the folder. rows : every measured student in a regime, see :func:`as_regimes`.
    groups : notebook 2's parameters by group. records : what the notebooks noted of themselves.
    shown : of images, samples (B, C, H, W) of teacher and main group from the same noise, by label.
    """

    name: str
    folder: Path
    facts: Facts
    rows: pd.DataFrame
    groups: dict[str, DistillParameters]
    records: dict[str, dict]
    shown: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.family, self.metrics, self.primary = self.facts.study, self.facts.metrics, self.facts.primary
        self.against_data = DATA_METRIC[self.primary]  # the same distance
        self.main = "main" if "main" in self.groups else next(iter(self.groups))  # what other groups are compared with

    def label(self, regime) -> str:
        """What a `regime` differs in from the main group, in words; it has the attributes of :data:`REGIME`."""
        main, group = self.groups[self.main], self.groups[regime.group]
        early = regime.update < group.updates
        of = lambda p, name: p.guidance[0] if name == "guidance" else getattr(p, name)
        own = {name: of(group, name) for name in NAMES} | {"guidance": regime.guidance}
        differ = [text(own[k]) for k, text in NAMES.items() if own[k] != of(main, k) and not (early and k == "updates")]
        differ += [f"{regime.update} updates"] * early + [f"{regime.steps} steps"] * (regime.steps > 1)
        # The end of a curve is called as its other points are.
        curve = main.snapshots and main.lr_decay == "constant"
        return ", ".join(differ) or (f"{main.updates} updates" if curve else "main")

    def claims(self) -> pd.DataFrame:
        """:func:`dcm.analysis.compare.verdicts` of every regime, the main group's first.

        With columns ``family``; ``regime`` (:meth:`label`); ``main``: whether it is the main setting, at the end of training
        and in one step; ``curve`` (:func:`as_regimes`); ``role``: ``ode``, ``teacher`` and ``data`` of the ODE error, the
        primary metric and its sibling.
        """
        table = compare.verdicts(self.rows, self.metrics, REGIME)
        if not len(table):
            return table
        table = table.assign(other=table.group != "main")
        table = table.sort_values(["other", "group", "update", "steps"], kind="stable").drop(columns="other")
        main = self.groups[self.main]
        at = {"group": self.main, "guidance": main.guidance[0], "update": main.updates, "steps": 1}
        role = {"ode_error": "ode", self.primary: "teacher", self.against_data: "data"}
        return table.merge(self.rows[[*REGIME, "curve"]].drop_duplicates(), on=REGIME).assign(
            family=self.family,
            regime=[self.label(row) for row in table.itertuples()],
            main=lambda t: (t[list(at)] == pd.Series(at)).all(axis=1),
            role=lambda t: t.metric.map(role).fillna(""),
        )


def as_regimes(rows: pd.DataFrame, constant: Sequence[str], run: str) -> pd.DataFrame:
    """Those of a run's measured rows that are regimes, with columns ``run`` and ``curve``.

    They are the ends of trainings; the ends sampled in several steps, without an ODE error, since fresh noise leads them
    off the solution they would be compared with; and, in one step, the snapshots of groups whose learning rate is
    `constant`. ``curve`` marks those and their end: the points of one curve.
    """
    several = rows.groupby("group")["update"].transform("nunique") > 1
    rows = rows.assign(run=run, curve=(rows.steps == 1) & rows.group.isin(constant) & several)
    rows = rows[rows.final | rows.curve]
    return rows.assign(ode_error=rows.ode_error.where(rows.steps == 1))


def samples_file(run: str) -> str:
    """Where a results folder keeps the samples that it shows of a run."""
    return f"samples_{run}.safetensors"


def load_runs(folder: str, device) -> list[Run]:
    """The runs of a folder: one that notebooks 1 to 4 left, or those behind the results of an earlier notebook 7.

    Results need no students, so what was measured on a GPU can be analysed anew without one.
    Raises :class:`InputError` for what is missing, unfinished or has no distance both to teacher and data.
    """
    path = project_path(folder)
    if not (path / "studies.json").exists():
        return [_of_students(folder, path, device)]
    try:
        return _of_results(path)
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:  # it may be another's
        raise InputError(f"{path} is no whole results folder of notebook 7 ({why(error)}).") from None


def _of_students(folder: str, path: Path, device) -> Run:
    noted = {p.stem: read_json(p) for p in sorted((path / "provenance").glob("*.json"))}
    if "1_teacher" not in noted:
        missing = f"{folder}/provenance/1_teacher.json does not exist"
        raise InputError(f"{missing}; run notebooks 1 to 4 with run_dir = {folder!r} first.")
    study = load_study(noted["1_teacher"]["parameters"]["study"], path, device)
    if study.quality.primary not in DATA_METRIC:
        raise InputError(
            f"{folder} is of the study {study.name}, whose quality has no distance both to teacher and data."
        )
    rows = measured(path, study.quality.metrics)
    about = {name: load_group(path, name).about for name in sorted(rows.group.unique())}
    groups = {name: validate(DistillParameters, a["parameters"]) for name, a in about.items()}
    # Not notebook 5's, nor a group's that is no longer among them.
    records = {k: r for k, r in noted.items() if k[0] in "134" or k.removeprefix("2_distill-") in groups}
    rows = as_regimes(rows, [name for name, p in groups.items() if p.lr_decay == "constant"], path.name)
    shown = _shown(path / "samples_shown.safetensors") if study.is_image else {}
    return Run(path.name, path, Facts.of(study), rows, groups, records, shown)


def _shown(path: Path) -> dict[str, Tensor]:
    """The first samples that notebook 4 kept to be looked at: the teacher's, then CM and Direct CM by steps."""
    kept = read_tensors(path)[0] if path.exists() else {}
    names = [name for name in kept if ", " in name]
    order = sorted(names, key=lambda name: (int(name.split(", ")[1].split()[0]), name))
    return {name: kept[name][:SHOWN] for name in ["teacher", *order] if name in kept}


def _of_before(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table that had the group in ``base`` and the steps in ``sampled``, with the columns of today."""
    if "base" not in rows:
        return rows
    return rows.assign(group=rows.base, steps=rows.sampled).drop(columns=["base", "sampled"])


def _of_results(path: Path) -> list[Run]:
    facts = FACTS.validate_json((path / "studies.json").read_text())
    rows = _of_before(pd.read_csv(path / "metrics.csv", dtype={"group": str, "base": str}))
    rows = with_final(rows, ["run", "group"]).drop(columns="family")
    records, runs = read_json(path / "provenance.json")["notebooks"], []
    for run, of_study in facts.items():
        own = {k.removeprefix(f"{run}/"): r for k, r in records.items() if k.startswith(f"{run}/")}
        groups = {
            name.removeprefix("2_distill-"): validate(DistillParameters, record["parameters"])
            for name, record in own.items() if name.startswith("2_distill-")
        }  # fmt: skip
        part = rows[rows.run == run]
        needed = {of_study.primary, DATA_METRIC[of_study.primary]}
        known = bool(groups) and all(p.group_name == name for name, p in groups.items())  # which is checked
        if not known or set(part.group) != set(groups) or not needed <= set(part):
            raise ValueError(f"the rows of {run} and what is said of them do not fit together")
        part = with_columns(part.dropna(axis="columns", how="all"), of_study.metrics)
        runs.append(Run(run, path, of_study, part, groups, own, _shown(path / samples_file(run))))
    return runs
