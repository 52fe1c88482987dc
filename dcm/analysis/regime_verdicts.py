"""Verdicts by regime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dcm.analysis import compare
from dcm.analysis.compare import SETTING
from dcm.analysis.regimes import REGIME, parts_of
from dcm.analysis.runs import Run
from dcm.parameters.notebooks import DistillParameters
from dcm.solvers import SOLVER_NAMES

VERDICTS = ("supported", "contradicted", "inconclusive")
NAMES = {
    "solver": lambda v: SOLVER_NAMES[v], "intervals": "N = {}".format, "guidance": "w = {:g}".format,
    "loss": lambda v: {"huber": "pseudo-Huber", "l2": "L2"}[v], "lora_rank": "LoRA rank {}".format, "width": "width {}".format,
    "lr": "lr {:g}".format, "lr_decay": "{} lr".format, "updates": "{} updates".format, "pairs_per_trajectory": "{} pairs a trajectory".format,
}  # fmt: skip


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
    """:func:`dcm.analysis.compare.verdicts` of every regime of a run, with columns ``run``, ``family`` and ``regime``."""
    table = compare.verdicts(run.rows, run.metrics, resamples, confidence)
    table = table.sort_values("group", key=lambda g: g.map(_place), kind="stable", ignore_index=True)
    names = [label(row, run) for row in table.itertuples()]
    return table.assign(run=run.name, family=run.family, regime=names)


def readable(claims: pd.DataFrame, runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """By family: one line a regime, one column a claim and metric: verdict, effect and interval."""
    out = {}
    for family, part in claims.groupby("family", sort=False):
        metrics = next(r.metrics for r in runs if r.family == family)
        names = {"ode_error": "C1: ODE error"} | {k: f"C2: {m.label}" for k, m in metrics.items()}
        text = [f"{r.verdict}, {compare.stated(r)}" for r in part.itertuples()]
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


def supporting(claims: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Regimes of a run that support C2 by at least one of two distances, to teacher and to data, contradicted by neither.

    A table of the columns of :data:`REGIME` and ``regime``, in the order of `claims`.
    """
    own = claims[(claims.run == run.name) & claims.metric.isin([run.primary, run.against_data])]
    said = own.groupby([*REGIME, "regime"], sort=False).verdict.agg(set).reset_index()
    return said[[("supported" in v) and ("contradicted" not in v) for v in said.verdict]].drop(columns="verdict")


def strongest(claims: pd.DataFrame, metrics: Sequence[str]) -> dict[str, pd.Series]:
    """The regime with the largest, and that with the smallest, mean log ratio over C2's `metrics` (ratio metrics)."""
    part = claims[(claims.claim == "C2") & claims.metric.isin(metrics)].assign(log=lambda t: np.log(t.value))
    order = part.sort_values("log")
    return {"for": order.iloc[-1], "against": order.iloc[0]}
