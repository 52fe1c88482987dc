"""Intervals, corrections and verdicts on cases whose answers are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dcm.analysis import compare, measured
from dcm.metrics.metric import Metric
from dcm.report import sentences

ROOT = Path(__file__).parents[2]
RATIO = Metric("m", ratio=True)


def rows(ratio, difference, seeds=6):
    """Direct CM's ODE error is `ratio` times the CM's, its quality `difference` above, with a little noise."""
    rng = np.random.default_rng(0)
    out = []
    for seed in range(seeds):
        base = np.exp(rng.normal(0, 0.5))
        for method, horizon in (("CM", 1), ("Direct CM", 10)):
            direct = method != "CM"
            out.append(
                dict(group="g", solver="ddim", intervals=10, guidance=1.0, method=method, horizon=horizon, seed=seed,
                     update=5, steps=1, final=True, ode_error=base * (ratio * rng.normal(1, 0.01) if direct else 1),
                     q=base + direct * (difference + rng.normal(0, 0.01)))
            )  # fmt: skip
    return pd.DataFrame(out)


def with_ratios(**logs) -> pd.DataFrame:
    """Rows whose metrics have these log ratios Direct CM / CM, one a seed."""
    table = rows(1.0, 0.0, len(next(iter(logs.values()))))
    for name, values in logs.items():
        table[name] = np.exp(np.where(table.method == "CM", 0, np.array(values)[table.seed]))
    return table


@pytest.mark.parametrize("seeds", [compare.MIN_SEEDS, 5, 8])
def test_the_interval_covers(seeds):
    """Of 95 % intervals at least 93 % hold the true mean, at the fewest seeds that have a verdict too."""
    effects = compare.paired_t(0.3 + 0.1 * np.random.default_rng(seeds).normal(size=(6000, seeds)))
    covered = ((effects.low < 0.3) & (0.3 < effects.high)).mean()
    assert 0.93 <= covered <= 0.97 and effects.n == seeds


def test_without_an_effect_few_verdicts_are_decisive():
    effects = compare.paired_t(np.random.default_rng(1).normal(size=(6000, compare.MIN_SEEDS)))
    each = [compare.Effect(v, 0, 0, effects.n, p) for v, p in zip(effects.value, effects.p)]
    assert 0.03 < np.mean([compare.verdict(e, 1) != "inconclusive" for e in each]) < 0.07


def test_it_is_the_paired_t_test():
    x = np.array([0.1, 0.25, 0.3, 0.15])
    e = compare.paired_t(x)
    half = stats.t.ppf(0.975, 3) * x.std(ddof=1) / 2
    assert (e.low, e.high) == pytest.approx((0.2 - half, 0.2 + half)) and e.value == pytest.approx(0.2)
    assert e.p == pytest.approx(2 * stats.t.sf(0.2 / (x.std(ddof=1) / 2), 3)) and e.p < 0.05 and e.low > 0


def test_nothing_is_resampled():
    """No source of the package and no configuration names BCa or SciPy's bootstrap."""
    files = [*(ROOT / "dcm").rglob("*.py"), *(ROOT / "workflow/config").glob("*.yaml")]
    named = [p.name for p in files if "BCa" in (t := p.read_text()) or "stats.bootstrap" in t or "resamples" in t]
    assert len(files) > 50 and named == [] and not hasattr(compare, "bootstrap")


def test_equal_differences_give_no_verdict():
    """Three times the same, to the last bit or but for rounding, is no measurement of a spread."""
    for x in (np.full(3, 0.7), 0.7 + np.array([0, 1e-8, -1e-8]), np.zeros(4)):
        e = compare.paired_t(x)
        assert np.isnan([e.low, e.high, e.p]).all() and e.value == pytest.approx(x[0], abs=1e-7)
        assert compare.verdict(e, 1) == compare.verdict(e, -1) == "inconclusive"
        assert compare.interval(e) == f"{x[0]:.3g} (no interval)"
    table = compare.verdicts(with_ratios(q=[0.5, 0.5, 0.5]), {"q": RATIO})
    [_, at] = table.itertuples()
    assert (
        at.verdict == "inconclusive"
        and np.isnan([at.low, at.high, at.p]).all()
        and at.value == pytest.approx(np.exp(0.5))
    )


def test_holms_procedure():
    """0.01 x 4, 0.02 x 3 and 0.03 x 2 rise; 0.04 x 1 would fall below what went before; none is above 1."""
    assert compare.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert compare.holm([0.6, 0.9]) == pytest.approx([1, 1]) and compare.holm([0.02]) == pytest.approx([0.02])
    assert compare.holm([np.nan, 0.01]) == pytest.approx([np.nan, 0.02], nan_ok=True), "it was asked, too"


def test_encoders_are_corrected_together_and_other_measures_alone():
    """p is about 0.03 by each of three measures: decisive alone, and not as one of two encoders."""
    logs = [0.1, 0.18, 0.11, 0.03]
    alone = compare.paired_t(logs).p
    assert 0.025 < alone < 0.05
    metrics = {name: RATIO for name in ("fd_teacher", "fd_classifier", "swd_teacher")}
    table = compare.verdicts(with_ratios(**{name: logs for name in metrics}), metrics).set_index("metric")
    assert table.p[["fd_teacher", "fd_classifier"]].to_numpy() == pytest.approx(2 * alone)
    assert table.p["swd_teacher"] == pytest.approx(alone)
    assert list(table.verdict[list(metrics)]) == ["inconclusive", "inconclusive", "supported"]
    assert list(table.encoders[["ode_error", *metrics]]) == ["", "inconclusive", "inconclusive", ""]


def test_encoders_together_say_whether_they_agree():
    high, low, wide = [0.5, 0.51, 0.52], [-0.5, -0.51, -0.52], [-1, 0, 1]
    metrics = {name: RATIO for name in ("fd_teacher", "fd_classifier", "fd_self")}
    for logs, said in (
        ((high, high, high), "unanimous (supported)"), ((low, low, low), "unanimous (contradicted)"),
        ((high, wide, high), "majority (supported)"), ((high, low, low), "majority (contradicted)"),
        ((high, low, wide), "split"), ((high, wide, wide), "split"), ((wide, wide, wide), "inconclusive"),
    ):  # fmt: skip
        table = compare.verdicts(with_ratios(**dict(zip(metrics, logs))), metrics).set_index("metric")
        assert set(table.encoders[list(metrics)]) == {said} == {compare.agreement(table.verdict[list(metrics)])}


@pytest.mark.parametrize(
    ("ratio", "difference", "lower", "expected"),
    [
        (0.2, 1.0, True, ("supported", "supported")),
        (5.0, -1.0, True, ("contradicted", "contradicted")),
        (0.2, -1.0, False, ("supported", "supported")),
        (1.0, 0.0, True, ("inconclusive", "inconclusive")),
    ],
)
def test_verdicts(ratio, difference, lower, expected):
    table = compare.verdicts(rows(ratio, difference), {"q": Metric("q", lower)})
    assert tuple(table.verdict) == expected
    assert table.value[0] == pytest.approx(ratio, rel=0.05) and table.value[1] == pytest.approx(difference, abs=0.05)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_decide_nothing(seeds):
    table = compare.verdicts(rows(0.2, 1.0, seeds), {"q": Metric("q")})
    assert set(table.verdict) == {"inconclusive"} and set(table.seeds) == {seeds}


def test_students_whose_horizon_changed_are_no_part_of_the_horizon_curve():
    """They have rows of their own, the last, in the main table."""
    table = rows(0.5, 1.0)
    changed = table.assign(method="direct>cm", horizon=1, ode_error=table.ode_error / 100, seed=table.seed + 10)
    between = table[table.method == "CM"].assign(method="h = 5", horizon=5)
    every = pd.concat([changed, table, between, changed.assign(method="2>5", horizon=5)])
    assert set(measured.constant(every).method) == {"CM", "h = 5", "Direct CM"}
    metrics = {"q": Metric("q")}
    main = sentences.main_table(every, pd.DataFrame(columns=["solver", "q"]), metrics)
    assert list(main.method) == ["CM", "h = 5", "Direct CM", "direct>cm", "2>5"]


@pytest.mark.parametrize(("before", "said"), [(3.0, "supported"), (1 / 3, "unstable CM"), (None, "one snapshot")])
def test_there_are_verdicts_only_where_the_cm_is_stable(before, said):
    """The CM's own error was three times as high before the end, a third, or is not known."""
    last = rows(0.2, 1.0)
    course = [] if before is None else [last.assign(update=3, final=False, ode_error=before * last.ode_error * (1 + 0.01 * last.seed))]
    table = compare.where_stable(compare.verdicts(last, {"q": Metric("q")}), pd.concat([last, *course]))
    assert set(table.verdict) == {said} and set(table.encoders) == {""}
    none = "" if said == "supported" else ", 2 without a stable CM"
    assert sentences.counted(table) == f"{2 * (not none)} supported, 0 contradicted, 0 inconclusive{none}"
    for line in sentences.verdict_lines(table, {"q": Metric("q")}):
        assert f" {said}: " in line
