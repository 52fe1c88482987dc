"""Regimes: when do better ODE solutions give worse samples? From measured rows to verdicts and tested explanations.

A regime is one setting of one study (group, solver, N, w), one number of sampling steps, or one moment of a training at
constant learning rate. The effect of C2 in a regime is the logarithm of the ratio Direct CM / CM of the study's primary
metric, a distance: above 0 the Direct CM's samples are worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from dcm import analysis
from dcm.analysis import SETTING, Effect
from dcm.artifacts import project_path, read_json, read_tensors
from dcm.distill import Group
from dcm.errors import InputError
from dcm.evaluation import DistilledGroup, load_group
from dcm.metrics import Metric
from dcm.parameters import DistillParameters, validate
from dcm.plots import SOLVER_NAMES
from dcm.studies import Study, load_study
from dcm.training import snapshot_updates

REGIME = ["run", *SETTING]
ROW_KEY = [*SETTING, "horizon", "method", "seed", "update", "steps"]
DATA_METRIC = {"swd_teacher": "swd_data", "fd_teacher": "fd_real"}  # the primary metric's sibling: against data
# The same two, by further encoders.
FURTHER = {"fd_classifier": "fd_classifier_real", "fd_pixels": "fd_pixels_real", "fid_teacher": "fid_real"}
VERDICTS = ("supported", "contradicted", "inconclusive")
OUTCOMES = {"supported": "as predicted", "contradicted": "against it", "inconclusive": "undecided"}


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
    study : the study, where the students are at hand. maps : tables of :func:`dcm.flow_maps.measure_maps`, where they
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


NAMES = {
    "solver": lambda v: SOLVER_NAMES[v], "intervals": "N = {}".format, "guidance": "w = {:g}".format,
    "loss": lambda v: {"huber": "pseudo-Huber", "l2": "L2"}[v], "lora_rank": "LoRA rank {}".format, "width": "width {}".format,
    "lr": "lr {:g}".format, "lr_decay": "{} lr".format, "updates": "{} updates".format, "reuse": "reuse {}".format,
}  # fmt: skip


def parts_of(regime: str) -> tuple[str, str, str]:
    """(group, update of a snapshot, sampling steps) of a name that :func:`as_regimes` gave; empty where they are usual."""
    base, _, moment = regime.partition("@")
    base, _, steps = base.partition("/")
    return base, moment, steps


def label(row, run: Run) -> str:
    """What a regime differs in from the run's main group, in words; `row` has the columns of :data:`REGIME`."""
    base, moment, steps = parts_of(row.group)
    later = {k: DistillParameters.model_fields[k].default for k in NAMES}  # what older runs did not name
    own, usual = (later | run.groups[name].parameters for name in (base, run.main))
    values = own | {"guidance": row.guidance}
    differ = [
        text(values[k]) for k, text in NAMES.items()
        if values[k] != (run.groups[run.main].group.guidance[0] if k == "guidance" else usual.get(k))
        and not (moment and k == "updates")
    ]  # fmt: skip
    differ += [f"{moment} updates"] * bool(moment) + [f"{steps}"] * bool(steps)
    main = run.groups[run.main]
    # The end of a curve is called as its other points are.
    curve = len(main.updates) > 1 and main.parameters["lr_decay"] == "constant"
    return ", ".join(differ) or (f"{main.updates[-1]} updates" if curve else "main")


def _place(group: str) -> tuple:
    """Order of regimes: main first; snapshots by update, the end last; one step first."""
    base, moment, steps = parts_of(group)
    return base != "main", base, int(moment or 10**10), int((steps or "1").split()[0])


def verdict_table(run: Run, resamples: int, confidence: float) -> pd.DataFrame:
    """:func:`dcm.analysis.verdicts` of every regime of a run, with columns ``run``, ``family`` and ``regime``."""
    table = analysis.verdicts(run.rows, run.metrics, resamples, confidence)
    table = table.sort_values("group", key=lambda g: g.map(_place), kind="stable", ignore_index=True)
    names = [label(row, run) for row in table.itertuples()]
    return table.assign(run=run.name, family=run.family, regime=names)


def readable(claims: pd.DataFrame, runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """By family: one line a regime, one column a claim and metric: verdict, effect and interval."""
    out = {}
    for family, part in claims.groupby("family", sort=False):
        metrics = next(r.metrics for r in runs if r.family == family)
        names = {"ode_error": "C1: ODE error"} | {k: f"C2: {m.label}" for k, m in metrics.items()}
        text = [f"{r.verdict}, {analysis.stated(r)}" for r in part.itertuples()]
        wide = part.assign(text=text).pivot(index=["run", *SETTING, "regime"], columns="metric", values="text")
        seeds = part.groupby(["run", *SETTING, "regime"]).seeds.max()
        wide = wide[[k for k in names if k in wide]].rename(columns=names).assign(seeds=seeds).reset_index()
        wide["regime"] = wide.run + ": " + wide.regime
        out[str(family)] = wide.drop(columns=["run", *SETTING]).fillna("not compared")
    return out


def counts(claims: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """By study and measure, in how many regimes the claim is supported, contradicted or open, and both claims hold."""
    keys = pd.MultiIndex.from_frame(claims[REGIME])
    solved = keys.isin(keys[(claims.claim == "C1") & (claims.verdict == "supported")])
    held = claims.verdict == "supported"
    table = claims.assign(both=held & solved, **{v: claims.verdict == v for v in VERDICTS})
    table = table.groupby(["family", "claim", "metric"], sort=False)[[*VERDICTS, "both"]].sum().reset_index()
    labels = {r.family: {"ode_error": "ODE error"} | {k: m.label for k, m in r.metrics.items()} for r in runs}
    table["metric"] = [labels[row.family][row.metric] for row in table.itertuples()]
    table["both"] = table.both.where(table.claim == "C2", "").astype(str)  # of C1 alone it says nothing
    return table.rename(columns={"family": "study", "metric": "measure", "both": "C1 and C2 both supported"})


def curves(run: Run, claims: pd.DataFrame) -> pd.DataFrame:
    """Claims of a run on the points of its trainings at constant learning rate, with ``base`` and ``moment`` (updates)."""
    points = run.rows[run.rows.curve].groupby("group").agg(moment=("update", "first"), base=("base", "first"))
    own = claims[claims.run == run.name].merge(points.reset_index(), on="group")
    return own.sort_values(["base", "moment"], kind="stable")


def log_ratios(rows: pd.DataFrame, column: str, by: Sequence[str] = tuple(REGIME)) -> pd.Series:
    """log(Direct CM / CM) of a positive `column`, paired by seed and averaged over seeds, indexed by regime."""
    return _paired(rows, column, by, lambda direct, cm: np.log(direct / cm))


def differences(rows: pd.DataFrame, column: str, by: Sequence[str] = tuple(REGIME)) -> pd.Series:
    """Direct CM - CM of a `column`, as :func:`log_ratios`."""
    return _paired(rows, column, by, lambda direct, cm: direct - cm)


def _paired(rows: pd.DataFrame, column: str, by: Sequence[str], compare) -> pd.Series:
    wide = rows[rows.method.isin(["CM", "Direct CM"])].pivot(index=[*by, "seed"], columns="method", values=column)
    return compare(wide["Direct CM"], wide["CM"]).groupby(level=list(by)).mean().rename(column)


@dataclass(frozen=True)
class Slopes:
    """Least-squares slopes of y on x with bootstrap intervals over groups.

    Attributes
    ----------
    pooled : over all points. within : common slope with a level for each group. between : over group means.
    by_group : slope and Spearman's correlation in each group. rank_pooled, rank_within : Spearman's over all points, and
    the mean over groups.
    """

    pooled: Effect
    within: Effect
    between: Effect
    by_group: pd.DataFrame
    rank_pooled: Effect
    rank_within: Effect


def slopes(rows: pd.DataFrame, x: str, y: str, by: Sequence[str], resamples: int, confidence: float) -> Slopes:
    """Pooled and within-group slopes: they differ in sign where Simpson's paradox holds.

    Groups of fewer than 3 points, or without spread in `x`, are left out. Intervals resample whole groups, since points
    of one group share their setting. Raises :class:`InputError` when no group is left.
    """
    rows = rows[np.isfinite(rows[x]) & np.isfinite(rows[y])]
    groups = [(k, p[x].to_numpy(float), p[y].to_numpy(float)) for k, p in rows.groupby(list(by), sort=True)]
    groups = [(k, a, b) for k, a, b in groups if len(a) >= 3 and a.std() > 0]
    if not groups:
        raise InputError(f"no group by {', '.join(by)} has three runs that differ in {x}.")
    n, sx, sy, sxx, sxy = np.array([[len(a), a.sum(), b.sum(), (a * a).sum(), (a * b).sum()] for _, a, b in groups]).T

    def pooled(index, axis=-1):
        N, X, Y, XX, XY = (v[index.astype(int)].sum(axis) for v in (n, sx, sy, sxx, sxy))
        return (XY - X * Y / N) / (XX - X * X / N)

    def within(index, axis=-1):
        i = index.astype(int)
        return (sxy - sx * sy / n)[i].sum(axis) / (sxx - sx * sx / n)[i].sum(axis)

    def between(index, axis=-1):
        i = index.astype(int)
        a, b = (sx / n)[i], (sy / n)[i]
        a, b = a - a.mean(axis, keepdims=True), b - b.mean(axis, keepdims=True)
        return (a * b).sum(axis) / (a * a).sum(axis)

    def effect(statistic) -> Effect:
        with np.errstate(divide="ignore", invalid="ignore"):  # resamples of one group alone
            return analysis.bootstrap(np.arange(len(groups)), statistic, resamples, confidence)

    alone = lambda f, k: float(f(np.array([k])))
    ranks = np.array([float(analysis.spearman(a, b)) if b.std() > 0 else 0.0 for _, a, b in groups])
    table = pd.DataFrame([k if isinstance(k, tuple) else (k,) for k, _, _ in groups], columns=list(by))
    table = table.assign(runs=n.astype(int), slope=[alone(within, k) for k in range(len(groups))], spearman=ranks)
    all_x, all_y = (np.concatenate([g[i] for g in groups]) for i in (1, 2))
    return Slopes(
        effect(pooled), effect(within), effect(between), table,
        analysis.rank_correlation(all_x, all_y, resamples, confidence), analysis.bootstrap(ranks, np.mean, resamples, confidence),
    )  # fmt: skip


def at_equal_error(rows: pd.DataFrame, by: Sequence[str], resamples: int, confidence: float) -> Effect:
    """How far the Direct CM's y lies above the CM's at equal x: c of the least-squares fit y = a + b x + c [Direct CM].

    `rows` has columns x, y, method; the interval resamples whole groups of `by`.
    """
    rows = rows[rows.method.isin(["CM", "Direct CM"])]
    A = np.column_stack([np.ones(len(rows)), rows.x, rows.method == "Direct CM"]).astype(float)
    group = rows.groupby(list(by)).ngroup().to_numpy()
    count = group.max() + 1
    square: np.ndarray = np.zeros((count, 3, 3))
    product: np.ndarray = np.zeros((count, 3))
    np.add.at(square, group, A[:, :, None] * A[:, None, :])
    np.add.at(product, group, A * rows.y.to_numpy()[:, None])

    def offset(index, axis=-1):
        i = np.moveaxis(np.asarray(index, int), axis, 0)
        return np.linalg.solve(square[i].sum(0), product[i].sum(0)[..., None])[..., 2, 0]

    try:
        return analysis.bootstrap(np.arange(count), offset, resamples, confidence)
    except np.linalg.LinAlgError:  # too few groups to tell the three apart
        return Effect(float("nan"), float("nan"), float("nan"), count)


@dataclass(frozen=True)
class Prediction:
    """What an explanation says will be measured, with the sign that it needs.

    Attributes
    ----------
    explanation : number and name. statement : what must hold. sign : of the estimate, if it does. unit : of the estimate.
    estimate : with its interval over regimes.
    """

    explanation: str
    statement: str
    sign: int
    unit: str
    estimate: Effect

    @property
    def outcome(self) -> str:
        """``as predicted``, ``against it`` or ``undecided``: where the whole interval lies."""
        return OUTCOMES[analysis.verdict(self.estimate, self.sign)]


AVERAGING, SMOOTHING, WANDERING, DISCRETISING = (
    "1 averaging", "2 bootstrapping as regularisation", "3 off-distribution starts", "4 the teacher's discretisation",
)  # fmt: skip


def supporting(claims: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Regimes of a run that support C2 by at least one of two distances, to teacher and to data, contradicted by neither.

    A table of the columns of :data:`REGIME` and ``regime``, in the order of `claims`.
    """
    own = claims[(claims.run == run.name) & claims.metric.isin([run.primary, run.against_data])]
    said = own.groupby([*REGIME, "regime"], sort=False).verdict.agg(set).reset_index()
    return said[[("supported" in v) and ("contradicted" not in v) for v in said.verdict]].drop(columns="verdict")


def mechanisms(run: Run, by_time: pd.DataFrame, starts: pd.DataFrame, claims: pd.DataFrame) -> pd.DataFrame:
    """One row a setting with maps: the effect of C2, and what each explanation says it comes from, Direct CM against CM.

    `by_time`, `starts` are rows of :func:`dcm.flow_maps.measure_maps`, `claims` of :func:`verdict_table`.

    Columns: ``c2``, ``c2_data`` and ``c1`` (log ratios of the primary metric, of its sibling against data, and of the ODE
    error); ``steep_direct``, ``steep_cm`` (rank correlation of the map's steepness and the error); ``averaging_direct``,
    ``averaging`` (index, and its difference); ``target`` (log gain of the CM's target over the teacher's map);
    ``roughness`` (log gain of the Direct CM's map over the CM's); ``start``, ``own`` (log of how much more the Direct
    CM's error grows from pure noise, and from its own samples noised anew); ``true`` (log ratio of errors to the
    reference solution), ``solver_share`` (log of the solver's error over the CM's), ``holds`` (see
    :func:`supporting`).
    """
    noised = by_time[by_time.t == by_time.t.max()]
    # The ends of trainings; a snapshot's own maps are not measured.
    rows = run.rows[
        (run.rows.sampled == 1) & (run.rows["update"] == run.rows.groupby("base")["update"].transform("max"))
    ]
    late, begin = noised.assign(run=run.name), starts.assign(run=run.name)
    holds = pd.MultiIndex.from_frame(rows[REGIME]).isin(pd.MultiIndex.from_frame(supporting(claims, run)[REGIME]))
    rows = rows.assign(group=rows.base, holds=holds)
    mean_of = lambda table, method, column: table[table.method == method].groupby(REGIME)[column].mean()
    begin = begin.assign(
        start=begin.error_prior / begin.error_noised,
        own=begin.error_own / begin.error_renoised,
        solver_share=np.log(begin.solver_true / begin.error_prior),
    )
    late = late.assign(target=np.log(late.gain_target / late.gain_teacher))
    columns = {
        "c2": log_ratios(rows, run.primary), "c2_data": log_ratios(rows, run.against_data), "c1": log_ratios(rows, "ode_error"),
        "steep_direct": mean_of(late, "Direct CM", "steep_correlation"), "steep_cm": mean_of(late, "CM", "steep_correlation"),
        "averaging_direct": mean_of(begin, "Direct CM", "averaging"), "averaging": differences(begin, "averaging"),
        "target": mean_of(late, "CM", "target"), "roughness": log_ratios(late, "gain_student"),
        "start": log_ratios(begin, "start"), "own": log_ratios(begin, "own"), "true": log_ratios(begin, "error_true"),
        "solver_share": mean_of(begin, "CM", "solver_share"), "holds": rows.groupby(REGIME).holds.all(),
    }  # fmt: skip
    return pd.DataFrame(columns).dropna(subset=["c2", "averaging"]).reset_index().assign(family=run.family)


def predictions(table: pd.DataFrame, resamples: int, confidence: float) -> list[Prediction]:
    """What the four explanations predict, held against :func:`mechanisms` of one family of regimes.

    What C2 comes from must be there where C2 is: means are over the regimes that support it (:func:`supporting`). What drives it must grow
    with it: rank correlations are over all regimes.
    """

    def mean(column: str) -> Effect:
        values = table[column][table.holds.astype(bool)].dropna().to_numpy(float)
        return (
            analysis.bootstrap(values, np.mean, resamples, confidence)
            if len(values)
            else Effect(np.nan, np.nan, np.nan, 0)
        )

    drives = lambda column, effect="c2": analysis.rank_correlation(
        table[column].to_numpy(), table[effect].to_numpy(), resamples, confidence
    )
    rho, log = "Spearman", "log ratio"

    def both(explanation: str, statement: str, column: str) -> list[Prediction]:
        """C2 grows with `column`, by either distance."""
        return [
            Prediction(explanation, statement, 1, rho, drives(column)),
            Prediction(explanation, f"{statement}, by the distance to data", 1, rho, drives(column, "c2_data")),
        ]

    return [
        Prediction(AVERAGING, "the Direct CM errs more where the ODE map is steeper", 1, rho, mean("steep_direct")),
        Prediction(
            AVERAGING,
            "the Direct CM's error is that of an average: index above 0",
            1,
            "index",
            mean("averaging_direct"),
        ),
        Prediction(AVERAGING, "it averages more than the CM", 1, "index", mean("averaging")),
        *both(AVERAGING, "where it averages more than the CM, C2 is stronger", "averaging"),
        Prediction(SMOOTHING, "the CM's target is smoother than the ODE map", -1, log, mean("target")),
        Prediction(SMOOTHING, "the CM's map is smoother than the Direct CM's", 1, log, mean("roughness")),
        *both(SMOOTHING, "where the CM is smoother by more, C2 is stronger", "roughness"),
        Prediction(WANDERING, "from pure noise the Direct CM's error grows more than the CM's", 1, log, mean("start")),
        Prediction(WANDERING, "from its own samples noised anew it grows more too", 1, log, mean("own")),
        *both(WANDERING, "where it grows more, C2 is stronger", "own"),
        Prediction(DISCRETISING, "the Direct CM is not nearer to the true solution", 1, log, mean("true")),
        *both(DISCRETISING, "where the solver errs more, C2 is stronger", "solver_share"),
    ]


def survival(made: Sequence[Prediction]) -> dict[str, str]:
    """Of every explanation: ``refuted`` by a prediction that fails, ``survives`` if all hold, else ``undecided``."""
    out = {}
    for name in dict.fromkeys(p.explanation for p in made):
        outcomes = [p.outcome for p in made if p.explanation == name]
        out[name] = (
            "refuted" if "against it" in outcomes else "survives" if set(outcomes) == {"as predicted"} else "undecided"
        )
    return out


def strongest(claims: pd.DataFrame, metrics: Sequence[str]) -> dict[str, pd.Series]:
    """The regime with the largest, and that with the smallest, mean log ratio over C2's `metrics` (ratio metrics)."""
    part = claims[(claims.claim == "C2") & claims.metric.isin(metrics)].assign(log=lambda t: np.log(t.value))
    order = part.sort_values("log")
    return {"for": order.iloc[-1], "against": order.iloc[0]}
