"""Slopes over all students and within settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dcm.analysis import compare
from dcm.analysis.compare import Effect
from dcm.analysis.measured import METHODS
from dcm.support.errors import InputError
from dcm.support.ranks import spearman


@dataclass(frozen=True)
class Slopes:
    """Least-squares slopes of y on x with bootstrap intervals over groups.

    Attributes
    ----------
    pooled : over all points. within : common slope with a level for each group.
    by_group : slope and Spearman's correlation in each group. rank_pooled, rank_within : Spearman's over all points, and
    the mean over groups.
    """

    pooled: Effect
    within: Effect
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

    def effect(statistic) -> Effect:
        with np.errstate(divide="ignore", invalid="ignore"):  # resamples of one group alone
            return compare.bootstrap(np.arange(len(groups)), statistic, resamples, confidence)

    alone = lambda f, k: float(f(np.array([k])))
    ranks = np.array([float(spearman(a, b)) if b.std() > 0 else 0.0 for _, a, b in groups])
    table = pd.DataFrame([k if isinstance(k, tuple) else (k,) for k, _, _ in groups], columns=list(by))
    table = table.assign(runs=n.astype(int), slope=[alone(within, k) for k in range(len(groups))], spearman=ranks)
    all_x, all_y = (np.concatenate([g[i] for g in groups]) for i in (1, 2))
    return Slopes(
        effect(pooled), effect(within), table,
        compare.rank_correlation(all_x, all_y, resamples, confidence), compare.bootstrap(ranks, np.mean, resamples, confidence),
    )  # fmt: skip


def at_equal_error(rows: pd.DataFrame, by: Sequence[str], resamples: int, confidence: float) -> Effect:
    """How far the Direct CM's y lies above the CM's at equal x: c of the least-squares fit y = a + b x + c [Direct CM].

    `rows` has columns x, y, method; the interval resamples whole groups of `by`.
    """
    rows = rows[rows.method.isin(METHODS)]
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
        return compare.bootstrap(np.arange(count), offset, resamples, confidence)
    except np.linalg.LinAlgError:  # too few groups to tell the three apart
        return Effect(np.nan, np.nan, np.nan, count)
