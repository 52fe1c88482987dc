"""Tables of a study."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from dcm.analysis.compare import final_one_step
from dcm.metrics.metric import Metric


def mean_and_spread(values: pd.Series) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed)."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def main_table(rows: pd.DataFrame, teacher: pd.DataFrame, metrics: dict[str, Metric]) -> pd.DataFrame:
    """tab1: method x solver in one step, at the main guidance and grid, mean and spread over seeds.

    `rows` : students of the settings to show. `teacher` : the teacher's own rows.
    """
    columns = ["ode_error", *metrics]
    out = []
    for (solver, method), part in final_one_step(rows).groupby(["solver", "method"], sort=True):
        line = dict(method=method, solver=solver, seeds=len(part), updates=int(part["update"].iloc[0]))
        for c in columns:
            if c in part:
                line[c], line[f"{c}_sd"] = mean_and_spread(part[c])
        out.append(line)
    for _, row in teacher.iterrows():
        out.append(
            dict(method="teacher", solver=row.solver, seeds=0, updates=0, ode_error=0.0) | {m: row[m] for m in metrics}
        )
    order = {"teacher": 0, "CM": 1, "Direct CM": 99}
    table = pd.DataFrame(out)
    rank = table.method.map(lambda m: order.get(m) if m in order else 1 + int(m.split("=")[1]) / 1000)
    return table.assign(rank=rank).sort_values(["solver", "rank"]).drop(columns="rank").reset_index(drop=True)


def readable(table: pd.DataFrame, metrics: dict[str, Metric]) -> pd.DataFrame:
    """tab1 with ``mean ± spread`` in one cell and metrics by their labels."""
    names = {"ode_error": "ODE error"} | {
        k: m.label + (" ↓" if m.lower_is_better else " ↑") * m.judged for k, m in metrics.items()
    }
    out = table[["method", "solver"]].copy()
    for column in ("seeds", "updates"):
        out[column] = [v if m != "teacher" else "" for v, m in zip(table[column], table.method)]
    for column, label in names.items():
        if column in table:
            spread = table.get(f"{column}_sd", pd.Series(np.nan, table.index))
            out[label] = [
                "not measured" if pd.isna(m) else f"{m:.3g}" + ("" if pd.isna(s) else f" ± {s:.2g}")
                for m, s in zip(table[column], spread)
            ]
    return out


BUDGETS = {"update": "updates", "network_evaluations": "network evaluations", "seconds": "wall time"}


def at_equal_budget(curves: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """The CM where it has spent as much as the Direct CM at its end, beside that, paired by seed.

    Parameters
    ----------
    curves : final_one_step-like rows of every snapshot of a CM and a Direct CM that were trained alone, with columns of
    :data:`BUDGETS` as spent up to there. metrics : columns to compare.

    Returns rows for :func:`verdicts`, whose group is the budget that is equal. Between snapshots the CM is interpolated
    linearly in the logarithm of the budget; where it never spent as much the pair is left out.
    """
    out = []
    for (budget, name), (_, of_seed) in itertools.product(BUDGETS.items(), curves.groupby("seed")):
        cm, direct = (of_seed[of_seed.method == m].sort_values(budget) for m in ("CM", "Direct CM"))
        if not len(cm) or not len(direct):
            continue
        end = direct.iloc[-1].to_dict() | {"group": f"equal {name}", "final": True}
        spent = end[budget]
        # NaN compares false; the last snapshot may miss an equal budget by rounding
        if not cm[budget].min() <= spent <= 1.01 * cm[budget].max():
            continue
        at = {m: float(np.interp(np.log(spent), np.log(cm[budget]), cm[m])) for m in metrics}
        updates = round(float(np.interp(spent, cm[budget], cm["update"])))
        out += [end | {"method": "CM", "horizon": 1, "update": updates} | at, end]
    return pd.DataFrame(out)
