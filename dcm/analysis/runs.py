"""Runs whose regimes are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd
from pydantic import TypeAdapter
from torch import Tensor

from dcm.analysis.measured import measured, with_columns, with_final
from dcm.analysis.regimes import DATA_METRIC, as_regimes
from dcm.horizon import Group
from dcm.metrics.metric import Metric
from dcm.parameters.check import renamed, validate
from dcm.parameters.kinds import Name, StudyName
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
        return cls(cast(StudyName, study.name), tuple(t.shape), modes, study.quality.primary, study.quality.metrics)


FACTS = TypeAdapter(dict[Name, Facts])  # by run: the file studies.json


@dataclass(frozen=True)
class Trained:
    """A group of students without their weights; `parameters` are notebook 2's, `updates` those of its snapshots."""

    group: Group
    updates: list[int]
    parameters: dict[str, Any]

    @classmethod
    def of(cls, distilled: DistilledGroup) -> Trained:
        """What `distilled` says of itself."""
        return cls(distilled.group, distilled.updates, renamed(distilled.about["parameters"]))

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
    name : of the folder. facts : of its study. rows : every measured student in a regime, see
    :func:`dcm.analysis.regimes.as_regimes`.
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


def load_runs(folder: str, device) -> list[Run]:
    """The runs of a folder: one that notebooks 1 to 4 left, or those behind the results of an earlier notebook 6.

    Results need no students, so what was measured on a GPU can be analysed anew without one.
    Raises :class:`InputError` for what is missing, unfinished or has no distance both to teacher and data.
    """
    path = project_path(folder)
    if not (path / "studies.json").exists():
        return [_of_students(folder, path, device)]
    try:
        return _of_results(path)
    except (
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        RecursionError,
    ) as error:  # the folder may be another's
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no whole results folder of notebook 6 ({type(error).__name__}: {why}).") from None


def _of_students(folder: str, path: Path, device) -> Run:
    teacher = path / "provenance/1_teacher.json"
    if not teacher.exists():
        raise InputError(
            f"{folder}/provenance/1_teacher.json does not exist; run notebooks 1 to 4 with run_dir = {folder!r} first."
        )
    study = load_study(read_json(teacher)["parameters"]["study"], path, device)
    if study.quality.primary not in DATA_METRIC:
        raise InputError(
            f"{folder} is of the study {study.name}, whose quality has no distance both to teacher and data."
        )
    rows = measured(path, study.quality.metrics)
    groups = {name: Trained.of(load_group(path, name)) for name in sorted(rows.group.unique())}
    notes = {p.stem: read_json(p) for p in sorted((path / "provenance").glob("*.json"))}
    # Not notebook 5's, nor a group's that is no longer among them.
    records = {k: r for k, r in notes.items() if k[0] in "134" or k.removeprefix("2_distill-") in groups}
    facts, shown = Facts.of(study), _shown(path / "samples_shown.safetensors") if study.is_image else {}
    constant = [name for name, g in groups.items() if g.parameters["lr_decay"] == "constant"]
    return Run(path.name, path, facts, as_regimes(rows, constant, path.name), groups, records, study, shown=shown)


def _shown(path: Path) -> dict[str, Tensor]:
    """The first samples that notebook 4 kept to be looked at: the teacher's, then CM and Direct CM by steps."""
    kept = read_tensors(path)[0] if path.exists() else {}
    names = [name for name in kept if ", " in name]
    order = sorted(names, key=lambda name: (int(name.split(", ")[1].split()[0]), name))
    return {name: kept[name][:SHOWN] for name in ["teacher", *order] if name in kept}


def _of_before(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose table had the group in ``base`` and the steps in ``sampled``, with the columns of today."""
    return (
        rows.assign(group=rows.base, steps=rows.sampled).drop(columns=["base", "sampled"]) if "base" in rows else rows
    )


def _of_results(path: Path) -> list[Run]:
    facts = FACTS.validate_json((path / "studies.json").read_text())
    rows, *maps = (pd.read_csv(path / f"{name}.csv") for name in ("metrics", *MAPS))
    rows = with_final(_of_before(rows), ["run", "group"])
    records, runs = read_json(path / "provenance.json")["notebooks"], []
    for run, of_study in facts.items():
        own = {k.removeprefix(f"{run}/"): r for k, r in records.items() if k.startswith(f"{run}/")}
        groups = {
            k.removeprefix("2_distill-"): Trained.read(r["parameters"]) for k, r in own.items() if k.startswith("2_")
        }
        part, by_time, starts = (t[t.run == run].dropna(axis="columns", how="all") for t in (rows, *maps))
        if set(part.group) != set(groups) or not {of_study.primary, DATA_METRIC[of_study.primary]} <= set(part):
            raise ValueError(f"the rows of {run} and what is said of them do not fit together")
        part, shown = with_columns(part.drop(columns="family"), of_study.metrics), _shown(path / samples_file(run))
        tables = (by_time.drop(columns="run"), starts.drop(columns="run"))
        runs.append(Run(run, path, of_study, part, groups, own, maps=tables, shown=shown))
    return runs
