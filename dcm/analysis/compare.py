"""Paired comparisons and verdicts on the paper's two claims, by the rules of docs/preregistration.md."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from dcm.analysis.measured import METHODS, SETTING
from dcm.metrics.metric import ENCODERS, Metric

VERDICTS = ("supported", "contradicted", "inconclusive")
ODE_ERROR = Metric("ODE error", ratio=True)
STABLE, UNSTABLE, UNKNOWN = "stable", "unstable CM", "one snapshot"  # what a CM is
MIN_SEEDS, CONFIDENCE = 3, 0.95
INTERVALS = "95 % paired t intervals over seeds; verdicts with Holm's correction over encoders"  # for captions
ROUNDING = 1e-6  # metrics are sums in single precision: differences that are this near to each other are equal
TO_TEACHER, TO_DATA, ERRORS = map(set, zip(*(columns for of in ENCODERS.values() for columns in of.values())))
ERRORS.add("ode_error")  # the error in any space
# One question put to several encoders: within a setting, the tests of a line are one family for Holm's correction. Every
# other measure, and the ODE error, is one test.
FAMILIES = {
    "distance to the teacher's samples": TO_TEACHER, "distance to held-out images": TO_DATA,
    "kernel distance to the teacher's samples": {"kid_teacher", "kid_classifier", "kid_pixels", "kid_self"},
}  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """A comparison: its `value`, 95 % interval (`low` to `high`), `n` pairs behind it, and two-sided `p` of no effect."""

    value: float
    low: float
    high: float
    n: int
    p: float


def interval(e: Effect | pd.Series) -> str:
    """An effect as ``value [low, high]``, or that it or its interval is not defined."""
    if not np.isfinite(e.value):
        return "not defined"
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" if np.isfinite(e.low) else f"{e.value:.3g} (no interval)"


def paired_t(values: np.ndarray) -> Effect:
    """Mean of paired differences (.., n) with its t interval and test against 0 (SciPy's), over the last axis.

    One pair, or differences that are all equal, have neither interval nor p: they are NaN.
    """
    x = np.asarray(values, float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about one pair, or equal ones
        test = stats.ttest_1samp(x, 0, axis=-1)
        ends = test.confidence_interval(CONFIDENCE)
        equal = np.ptp(x, axis=-1) <= ROUNDING * np.abs(x).max(axis=-1)
    low, high, p = np.where(equal, np.nan, [ends.low, ends.high, test.pvalue])
    return Effect(x.mean(-1), low, high, x.shape[-1], p)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """P values (n,) of one family, adjusted by Holm's step-down procedure (1979). NaN counts as a test, and stays NaN."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1)[np.argsort(order)]


def verdict(effect: Effect, expected_sign: int) -> str:
    """``supported`` when p < 0.05 and the effect has the expected sign, ``contradicted`` when it has the other one."""
    supported, contradicted, inconclusive = VERDICTS
    if effect.n < MIN_SEEDS or not effect.p < 1 - CONFIDENCE:  # NaN compares false
        return inconclusive
    return supported if expected_sign * effect.value > 0 else contradicted


def agreement(verdicts: Iterable[str]) -> str:
    """What several encoders say together: ``unanimous (..)``, ``majority (..)`` with the verdict, ``split``, ``inconclusive``.

    A majority is more than half of all. It is split where some are decisive and no decisive verdict has one.
    """
    said = list(verdicts)
    supported, contradicted, inconclusive = VERDICTS
    for decisive in (supported, contradicted):
        if 2 * said.count(decisive) > len(said):
            return f"{'unanimous' if set(said) == {decisive} else 'majority'} ({decisive})"
    return inconclusive if set(said) == {inconclusive} else "split"


def verdicts(
    rows: pd.DataFrame, metrics: dict[str, Metric], by: Sequence[str] = tuple(SETTING), pair: Sequence[str] = METHODS[::-1]
) -> pd.DataFrame:
    """Verdict on C1 (:data:`ERRORS`) and on C2 (every other metric) in every setting of `by` that has both methods of `pair`.

    `rows` has one row a method and seed in each; methods are compared in pairs of one seed. C2 asks for worse samples: the
    sign depends on the metric's direction. Effects of ratio metrics are given as ratios, by default Direct CM / CM, of the
    others as differences. ``p`` is adjusted within :data:`FAMILIES`; ``encoders`` is the :func:`agreement` of the
    row's family, where that has several encoders.
    """
    out, found = [], []
    judged = {"ode_error": ODE_ERROR} | {name: m for name, m in metrics.items() if m.judged and name in rows}
    for setting, part in rows.groupby(list(by), sort=True):
        for name, metric in judged.items():
            pairs = part.pivot(index="seed", columns="method", values=name).reindex(columns=list(pair)).dropna()
            if not len(pairs):
                continue
            first, second = pairs.to_numpy(float).T
            e = paired_t(np.log(first / second) if metric.ratio else first - second)
            claim = "C1" if name in ERRORS else "C2"
            kind, f = ("ratio", np.exp) if metric.ratio else ("difference", float)
            line = dict(claim=claim, metric=name, effect=kind, value=f(e.value), low=f(e.low), high=f(e.high), p=e.p)
            out.append(dict(zip(by, setting)) | line | dict(seeds=e.n))
            found.append((e, 1 if (claim == "C2") == metric.lower_is_better else -1))
    if not out:
        return pd.DataFrame()
    table = pd.DataFrame(out)
    family = table.metric.map({name: f for f, names in FAMILIES.items() for name in names}).fillna(table.metric)
    table["p"] = table.groupby([*by, family]).p.transform(lambda p: holm(p.to_numpy()))
    table["verdict"] = [verdict(replace(e, p=p), sign) for (e, sign), p in zip(found, table.p)]
    said = table.groupby([*by, family]).verdict
    return table.assign(encoders=said.transform(agreement).where(said.transform("size") > 1, ""))


def stability(rows: pd.DataFrame, by: Sequence[str] = tuple(SETTING)) -> pd.Series:
    """By setting whether its CM is stable, from `rows` of all snapshots.

    Its own ODE error in one step, from the last snapshot but one to the last, as log ratios by seed, has no t interval
    above 0.
    """
    cm, out = rows[(rows.method == "CM") & (rows.steps == 1)], {}
    for setting, part in cm.groupby(list(by)):
        errors = part.pivot(index="seed", columns="update", values="ode_error").to_numpy(float)[:, -2:]
        finite = np.isfinite(errors).all()
        rises = errors.shape[1] == 2 and finite and paired_t(np.log(errors[:, 1] / errors[:, 0])).low > 0
        out[setting] = UNSTABLE if rises or not finite else STABLE if errors.shape[1] == 2 else UNKNOWN
    return pd.Series(list(out.values()), pd.MultiIndex.from_tuples(out, names=list(by)), dtype=object, name="cm")


def with_stability(table: pd.DataFrame, rows: pd.DataFrame, by: Sequence[str] = tuple(SETTING)) -> pd.DataFrame:
    """`table` of settings with the column ``cm``: their :func:`stability` by `rows`."""
    return table.join(stability(rows, by), on=list(by)).fillna({"cm": UNKNOWN})


def where_stable(
    table: pd.DataFrame, rows: pd.DataFrame, by: Sequence[str] = tuple(SETTING), without: Sequence[str] = (UNSTABLE, UNKNOWN)
) -> pd.DataFrame:
    """:func:`verdicts` with the CM's :func:`stability` (column ``cm``), which takes their place where it is in `without`."""
    table = with_stability(table, rows, by)
    unclear = table.cm.isin(without)
    together = table.encoders.mask(unclear & (table.encoders != ""), table.cm)
    return table.assign(verdict=table.verdict.mask(unclear, table.cm), encoders=together)
