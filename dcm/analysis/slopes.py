"""Slopes over all students and within settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dcm.analysis.compare import Effect, paired_t
from dcm.support.errors import InputError


@dataclass(frozen=True)
class Slopes:
    """Least-squares slopes of y on x.

    Attributes
    ----------
    pooled : over all points. within : common slope with a level for each group. by_group : the slope in each group.
    """

    pooled: Effect
    within: Effect
    by_group: pd.DataFrame


def slopes(rows: pd.DataFrame, x: str, y: str, by: Sequence[str]) -> Slopes:
    """Pooled and within-group slopes: they differ in sign where Simpson's paradox holds.

    Groups of fewer than 3 points, or without spread in `x`, are left out. Intervals are t intervals of the jackknife's
    pseudo-values (Tukey 1958), one a group, since points of one group share their setting. Raises :class:`InputError` when
    no group is left.
    """
    rows = rows[np.isfinite(rows[x]) & np.isfinite(rows[y])]
    groups = [(k, p[x].to_numpy(float), p[y].to_numpy(float)) for k, p in rows.groupby(list(by), sort=True)]
    groups = [(k, a, b) for k, a, b in groups if len(a) >= 3 and a.std() > 0]
    if not groups:
        raise InputError(f"no group by {', '.join(by)} has three runs that differ in {x}.")
    sums = np.array([[len(a), a.sum(), b.sum(), (a * a).sum(), (a * b).sum()] for _, a, b in groups])
    n, sx, sy, sxx, sxy = sums.T
    inside = np.array([sxy - sx * sy / n, sxx - sx * sx / n])  # around each group's own level

    def effect(parts: np.ndarray, slope) -> Effect:
        whole, count = parts.sum(0), len(parts)
        with np.errstate(divide="ignore", invalid="ignore"):  # one group alone
            pseudo = count * slope(*whole) - (count - 1) * slope(*(whole - parts).T)
        return replace(paired_t(pseudo), value=slope(*whole))

    over_all = lambda n, sx, sy, sxx, sxy: (sxy - sx * sy / n) / (sxx - sx * sx / n)
    keys = [k if isinstance(k, tuple) else (k,) for k, _, _ in groups]
    table = pd.DataFrame(keys, columns=list(by)).assign(runs=n.astype(int), slope=inside[0] / inside[1])
    return Slopes(effect(sums, over_all), effect(inside.T, np.divide), table)
