"""Paired comparisons and verdicts on the paper's two claims."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from dcm.analysis.measured import METHODS, SETTING, final_one_step
from dcm.metrics.metric import Metric
from dcm.support.ranks import spearman

VERDICTS = ("supported", "contradicted", "inconclusive")
ODE_ERROR = Metric("ODE error", ratio=True)
MIN_SEEDS = 3


@dataclass(frozen=True)
class Effect:
    """A comparison with its bootstrap interval.

    Attributes
    ----------
    value, low, high : the effect and its interval. n : pairs behind it.
    """

    value: float
    low: float
    high: float
    n: int


def interval(e: Effect | pd.Series) -> str:
    """An effect as ``value [low, high]``, or that it or its interval is not defined."""
    if not np.isfinite(e.value):
        return "not defined"
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" if np.isfinite(e.low) else f"{e.value:.3g} (no interval)"


def bootstrap(
    x: np.ndarray, statistic=np.mean, resamples: int = 10000, confidence: float = 0.95, paired=None
) -> Effect:
    """Bootstrap interval (BCa, percentile where BCa is not defined) of a statistic of `x` (n,), by SciPy.

    `paired` is a second sample (n,) that is resampled together with `x` and handed to `statistic` as well.
    """
    data = (np.asarray(x, float),) if paired is None else (np.asarray(x, float), np.asarray(paired, float))
    value = float(statistic(*data))

    def rounded(*resampled, axis=-1):
        # Few seeds are often drawn once each, in any order: sums that differ in the last bits alone. BCa counts how many
        # resamples lie below the estimate, so these must equal it, on every processor.
        return np.asarray(statistic(*resampled, axis=axis), np.float32).astype(float)

    if len(data[0]) < 2:
        return Effect(value, np.nan, np.nan, len(data[0]))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # degenerate resamples: handled by the second method
            result = stats.bootstrap(
                data, rounded, n_resamples=resamples, confidence_level=confidence, method=method,
                paired=paired is not None, rng=np.random.default_rng(0),
            ).confidence_interval  # fmt: skip
        if np.isfinite([result.low, result.high]).all():
            return Effect(value, float(result.low), float(result.high), len(data[0]))
    return Effect(value, np.nan, np.nan, len(data[0]))


def verdict(effect: Effect, expected_sign: int) -> str:
    """``supported`` when the whole interval has the expected sign, ``contradicted`` when it has the other one."""
    ends = expected_sign * np.array([effect.low, effect.high])  # NaN compares false
    supported, contradicted, inconclusive = VERDICTS
    if effect.n < MIN_SEEDS:
        return inconclusive
    return supported if (ends > 0).all() else contradicted if (ends < 0).all() else inconclusive


def verdicts(
    rows: pd.DataFrame,
    metrics: dict[str, Metric],
    resamples: int,
    confidence: float,
    by: Sequence[str] = tuple(SETTING),
) -> pd.DataFrame:
    """Verdict on C1 (ODE error) and on C2 (every quality metric) in every setting of `by` that has both models.

    `rows` has one row a method and seed in each; models are compared in pairs of one seed. C2 asks for worse samples: the
    sign depends on the metric's direction. Effects of ratio metrics are given as ratios Direct CM / CM, of the others as
    differences Direct CM - CM.
    """
    out = []
    judged = [("C1", "ode_error", ODE_ERROR), *(("C2", k, m) for k, m in metrics.items() if m.judged and k in rows)]
    for setting, part in rows.groupby(list(by), sort=True):
        for claim, name, metric in judged:
            pairs = part.pivot(index="seed", columns="method", values=name).reindex(columns=METHODS).dropna()
            if not len(pairs):
                continue
            cm, direct = pairs.to_numpy(float).T
            effect = bootstrap(np.log(direct / cm) if metric.ratio else direct - cm, np.mean, resamples, confidence)
            sign = 1 if (claim == "C2") == metric.lower_is_better else -1
            kind, f = ("ratio", np.exp) if metric.ratio else ("difference", float)
            line = dict(
                claim=claim, metric=name, effect=kind, value=f(effect.value), low=f(effect.low), high=f(effect.high)
            )
            out.append(dict(zip(by, setting)) | line | dict(seeds=effect.n, verdict=verdict(effect, sign)))
    return pd.DataFrame(out)


def rank_correlation(x: np.ndarray, y: np.ndarray, resamples: int, confidence: float) -> Effect:
    """Spearman's rank correlation with its bootstrap interval over runs."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x)[keep], np.asarray(y)[keep]
    if len(x) < 4:
        return Effect(np.nan, np.nan, np.nan, len(x))
    return bootstrap(x, spearman, resamples, confidence, paired=y)


def correlations(rows: pd.DataFrame, column: str, resamples: int, confidence: float) -> pd.DataFrame:
    """Rank correlation of ODE error and a quality metric: over all runs, and within each setting (Simpson)."""
    last = final_one_step(rows)
    parts = [("all settings", last)] + [(f"{s[0]}, w = {s[3]:g}", p) for s, p in last.groupby(SETTING, sort=True)]
    out = []
    for name, part in parts:
        e = rank_correlation(part.ode_error.to_numpy(), part[column].to_numpy(), resamples, confidence)
        out.append(dict(runs_from=name, metric=column, spearman=e.value, low=e.low, high=e.high, runs=e.n))
    return pd.DataFrame(out)
