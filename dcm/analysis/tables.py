"""Tables to be read."""

import numpy as np
import pandas as pd

from dcm.analysis.compare import ODE_ERROR, interval
from dcm.analysis.measured import constant, final_one_step
from dcm.metrics.metric import Metric
from dcm.solvers import SOLVER_NAMES


def with_ode_error(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """`metrics` after the ODE error."""
    return {"ode_error": ODE_ERROR} | metrics


def main_table(rows: pd.DataFrame, teacher: pd.DataFrame, metrics: dict[str, Metric]) -> pd.DataFrame:
    """tab1: method x solver in one step, at the main guidance and grid, mean and spread (0 for one seed) over seeds.

    In the order of horizons; after them, students whose horizon changed.

    `rows` : students of the settings to show. `teacher` : the teacher's own rows.
    """
    own = teacher.assign(method="teacher", horizon=0, seeds=0, updates=0, ode_error=0.0)
    by_method = final_one_step(rows).groupby(["solver", "horizon", "method"])
    measured = by_method[list(with_ode_error(metrics))]
    spread = measured.std().add_suffix("_sd")
    spread[by_method.size() == 1] = 0.0
    counts = by_method.agg(seeds=("seed", "size"), updates=("update", "first"))
    students = pd.concat([counts, measured.agg(lambda of_seeds: of_seeds.mean()), spread], axis=1).reset_index()
    stood = students.method.isin(constant(rows).method)
    students["horizon"] = students.horizon.where(stood, np.inf)  # those that changed come last
    table = pd.concat([own, students]).sort_values(["solver", "horizon"], kind="stable", ignore_index=True)
    values = [c for name in with_ode_error(metrics) for c in (name, f"{name}_sd")]
    return table[["method", "solver", "seeds", "updates", *values]]


def readable_main(table: pd.DataFrame, metrics: dict[str, Metric]) -> pd.DataFrame:
    """tab1 with ``mean ± spread`` in one cell and metrics by their labels."""
    out = table[["method", "solver"]].copy()
    for column in ("seeds", "updates"):
        out[column] = table[column].astype(object).where(table.method != "teacher", "")
    for name, metric in with_ode_error(metrics).items():
        arrow = "" if not metric.judged or name == "ode_error" else " ↓" if metric.lower_is_better else " ↑"
        out[metric.label + arrow] = [
            "not measured" if pd.isna(m) else f"{m:.3g}" + ("" if pd.isna(s) else f" ± {s:.2g}")
            for m, s in zip(table[name], table[f"{name}_sd"])
        ]
    return out


def readable_claims(claims: pd.DataFrame, metrics: dict[str, Metric]) -> pd.DataFrame:
    """The verdicts of a study with labels and rounded intervals."""
    label = {name: m.label for name, m in with_ode_error(metrics).items()}
    table = pd.DataFrame(
        {
            "claim": claims.claim, "solver": claims.solver.map(SOLVER_NAMES), "N": claims.intervals,
            "w": claims.guidance.map("{:g}".format), "group": claims.group, "metric": claims.metric.map(label),
            "Direct CM against CM": claims.effect + " " + claims.apply(interval, axis=1),
            "seeds": claims.seeds, "verdict": claims.verdict, "over encoders": claims.encoders,
        }
    )  # fmt: skip
    return table if claims.encoders.any() else table.drop(columns="over encoders")
