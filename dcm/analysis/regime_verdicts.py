"""Verdicts by regime."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dcm.analysis import compare
from dcm.analysis.compare import VERDICTS
from dcm.analysis.regimes import REGIME
from dcm.analysis.runs import Run
from dcm.solvers import SOLVER_NAMES

NAMES = {
    "solver": lambda v: SOLVER_NAMES[v], "intervals": "N = {}".format, "guidance": "w = {:g}".format,
    "loss": lambda v: {"huber": "pseudo-Huber", "l2": "L2"}[v], "lora_rank": "LoRA rank {}".format, "width": "width {}".format,
    "lr": "lr {:g}".format, "lr_decay": "{} lr".format, "updates": "{} updates".format, "pairs_per_trajectory": "{} pairs a trajectory".format,
}  # fmt: skip


def label(regime, run: Run) -> str:
    """What a `regime` differs in from the run's main group, in words; it has the attributes of :data:`REGIME`."""
    main, group = run.groups[run.main], run.groups[regime.group]
    early = regime.update < group.updates
    of = lambda p, name: p.guidance[0] if name == "guidance" else getattr(p, name)
    own = {name: of(group, name) for name in NAMES} | {"guidance": regime.guidance}
    differ = [text(own[k]) for k, text in NAMES.items() if own[k] != of(main, k) and not (early and k == "updates")]
    differ += [f"{regime.update} updates"] * early + [f"{regime.steps} steps"] * (regime.steps > 1)
    # The end of a curve is called as its other points are.
    curve = main.snapshots and main.lr_decay == "constant"
    return ", ".join(differ) or (f"{main.updates} updates" if curve else "main")


def verdict_table(run: Run, resamples: int, confidence: float) -> pd.DataFrame:
    """:func:`dcm.analysis.compare.verdicts` of every regime of a run, the main group's first.

    With columns ``run``, ``family``, ``regime`` (:func:`label`) and ``main``: whether it is the run's main setting, at the
    end of training and in one step.
    """
    table = compare.verdicts(run.rows, run.metrics, resamples, confidence, REGIME)
    if not len(table):
        return table
    table = table.assign(other=table.group != "main")
    table = table.sort_values(["other", "group", "update", "steps"], kind="stable", ignore_index=True)
    main = run.groups[run.main]
    at = {"group": run.main, "guidance": main.guidance[0], "update": main.updates, "steps": 1}
    names = [label(row, run) for row in table.itertuples()]
    at_main = (table[list(at)] == pd.Series(at)).all(axis=1)
    return table.drop(columns="other").assign(family=run.family, regime=names, main=at_main)


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
    """Claims of a run on the points of its trainings at constant learning rate, in the order of their updates."""
    points = run.rows.loc[run.rows.curve, REGIME].drop_duplicates()
    return claims.merge(points, on=REGIME).sort_values(["group", "update"], kind="stable")


def supporting(claims: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Regimes of a run that support C2 by at least one of two distances, to teacher and to data, contradicted by neither.

    A table of the columns of :data:`REGIME` and ``regime``, in the order of `claims`.
    """
    own = claims[(claims.run == run.name) & claims.metric.isin([run.primary, run.against_data])]
    said = own.groupby([*REGIME, "regime"], sort=False).verdict.agg(set).reset_index()
    return said[[("supported" in v) and ("contradicted" not in v) for v in said.verdict]].drop(columns="verdict")
