"""Runs whose regimes are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from dcm.analysis.regimes import DATA_METRIC, ROW_KEY
from dcm.horizon import Group
from dcm.metrics.metric import Metric
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.studies.base import Study
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import project_path, read_json, read_tensors
from dcm.training.saved import DistilledGroup, load_group, snapshot_updates


@dataclass(frozen=True)
class Facts:
    """What tables and figures need to know of a study, without its teacher.

    Attributes
    ----------
    study : name. shape : of a sample. modes : of each class, where the teacher is a mixture. primary, metrics : as the
    study's quality has them.
    """

    study: str
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

    @classmethod
    def read(cls, values: dict) -> Facts:
        """From what :func:`dataclasses.asdict` made of one."""
        metrics = {name: Metric(**metric) for name, metric in values["metrics"].items()}
        return cls(**values | {"shape": tuple(values["shape"]), "metrics": metrics})


@dataclass(frozen=True)
class Trained:
    """A group of students without their weights; `parameters` are notebook 2's, `updates` those of its snapshots."""

    group: Group
    updates: list[int]
    parameters: dict[str, Any]

    @classmethod
    def of(cls, distilled: DistilledGroup) -> Trained:
        """What `distilled` says of itself."""
        return cls(distilled.group, distilled.updates, distilled.about["parameters"])

    @classmethod
    def read(cls, parameters: dict) -> Trained:
        """By notebook 2's parameters."""
        p = validate(DistillParameters, parameters)
        return cls(p.group(), snapshot_updates(p.updates, p.snapshots), p.model_dump())


@dataclass
class Run:
    """What notebooks 1 to 4 left in one run folder.

    Attributes
    ----------
    name : of the folder. facts : of its study. rows : every measured student, as :func:`as_regimes` labels it.
    groups : what was distilled, by name. records : what the notebooks noted of themselves.
    study : the study, where the students are at hand. maps : tables of :func:`dcm.evaluation.flow_maps.measure_maps`, where they
    were measured before. shown : of images, samples (B, C, H, W) of teacher and main group from the same noise, by label.
    """

    name: str
    folder: Path
    facts: Facts
    rows: pd.DataFrame
    groups: dict[str, Trained]
    records: dict[str, dict]
    study: Study | None = None
    maps: tuple[pd.DataFrame, pd.DataFrame] | None = None
    shown: dict[str, Tensor] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The study's name."""
        return self.facts.study

    @property
    def main(self) -> str:
        """Name of the group that others are compared with: ``main``, or the first where there is none."""
        return "main" if "main" in self.groups else next(iter(self.groups))

    @property
    def metrics(self) -> dict[str, Metric]:
        """Quality metrics of the study."""
        return self.facts.metrics

    @property
    def primary(self) -> str:
        """The metric, a distance to the teacher's samples, that the effect of C2 is about."""
        return self.facts.primary

    @property
    def against_data(self) -> str:
        """The same distance to data."""
        return DATA_METRIC[self.primary]


MAPS = ("maps_by_time", "maps_from_noise")  # tables in a results folder of notebook 6
SHOWN = 16  # samples of each kind that its figures show


def samples_file(run: str) -> str:
    """Where a results folder keeps the samples that it shows of a run."""
    return f"samples_{run}.safetensors"


def as_regimes(rows: pd.DataFrame, groups: dict[str, Trained], run: str) -> pd.DataFrame:
    """Measured rows with a column ``run``, and ``group`` naming the regime: the group, its update or its steps.

    Kept are the ends of trainings; the ends sampled in several steps, without an ODE error, since fresh noise leads them
    off the solution they would be compared with; and snapshots of trainings whose learning rate is constant.
    """
    last = rows.groupby("group")["update"].transform("max")
    constant = rows.group.map({name: g.parameters["lr_decay"] == "constant" for name, g in groups.items()})
    snapshots = (rows.steps == 1) & constant & (rows.groupby("group")["update"].transform("nunique") > 1)
    rows = rows[(rows["update"] == last) | snapshots].copy()
    base, several = rows.group.copy(), rows.steps > 1
    rows["base"] = base
    rows["curve"] = snapshots[rows.index]  # the points of one curve, its end included
    early = rows.curve & (rows["update"] < last[rows.index])
    rows.loc[early, "group"] = base + "@" + rows["update"].astype(str)
    rows.loc[several, "group"] = base + "/" + rows.steps.astype(str) + " steps"
    rows.loc[several, "ode_error"] = np.nan
    return rows.assign(run=run, final=True, sampled=rows.steps, steps=1)


def load_runs(folder: str, device) -> list[Run]:
    """The runs of a folder: one that notebooks 1 to 4 left, or those behind the results of an earlier notebook 6.

    Results need no students, so what was measured on a GPU can be analysed anew without one.
    Raises :class:`InputError` for what is missing, unfinished or has no distance both to teacher and data.
    """
    path = project_path(folder)
    return _of_results(path) if (path / "studies.json").exists() else [_of_students(folder, path, device)]


def _of_students(folder: str, path: Path, device) -> Run:
    for name in ("provenance/1_teacher.json", "ode_error.csv", "quality.csv"):
        if not (path / name).exists():
            raise InputError(f"{folder}/{name} does not exist; run notebooks 1 to 4 with run_dir = {folder!r} first.")
    study = load_study(read_json(path / "provenance/1_teacher.json")["parameters"]["study"], path, device)
    if study.quality.primary not in DATA_METRIC:
        raise InputError(
            f"{folder} is of the study {study.name}, whose quality has no distance both to teacher and data."
        )
    ode, quality = (pd.read_csv(path / f"{name}.csv") for name in ("ode_error", "quality"))
    rows = ode.merge(quality, on=ROW_KEY, validate="one_to_one")
    groups = {name: Trained.of(load_group(path, name)) for name in sorted(rows.group.unique())}
    notes = {p.stem: read_json(p) for p in sorted((path / "provenance").glob("*.json"))}
    # Not notebook 5's, nor a group's that is no longer among them.
    records = {k: r for k, r in notes.items() if k[0] in "134" or k.removeprefix("2_distill-") in groups}
    facts, shown = Facts.of(study), _shown(path / "samples_shown.safetensors") if study.is_image else {}
    return Run(path.name, path, facts, as_regimes(rows, groups, path.name), groups, records, study, shown=shown)


def _shown(path: Path) -> dict[str, Tensor]:
    """The first samples that notebook 4 kept to be looked at: the teacher's, then CM and Direct CM by steps."""
    kept = read_tensors(path)[0] if path.exists() else {}
    names = [name for name in kept if ", " in name]
    order = sorted(names, key=lambda name: (int(name.split(", ")[1].split()[0]), name))
    return {name: kept[name][:SHOWN] for name in ["teacher", *order] if name in kept}


def _of_results(path: Path) -> list[Run]:
    for name in ("metrics.csv", "provenance.json", *(f"{table}.csv" for table in MAPS)):
        if not (path / name).exists():
            raise InputError(f"{path} is no whole results folder of notebook 6: {name} is missing.")
    rows, *maps = (pd.read_csv(path / f"{name}.csv") for name in ("metrics", *MAPS))
    records, runs = read_json(path / "provenance.json")["notebooks"], []
    for run, facts in read_json(path / "studies.json").items():
        own = {k.removeprefix(f"{run}/"): r for k, r in records.items() if k.startswith(f"{run}/")}
        groups = {
            k.removeprefix("2_distill-"): Trained.read(r["parameters"]) for k, r in own.items() if k.startswith("2_")
        }
        part, *tables = (t[t.run == run].dropna(axis="columns", how="all") for t in (rows, *maps))
        by_time, starts = (t.drop(columns="run") for t in tables)
        rows_of_run, shown = part.drop(columns="family"), _shown(path / samples_file(run))
        runs.append(Run(run, path, Facts.read(facts), rows_of_run, groups, own, maps=(by_time, starts), shown=shown))
    return runs
