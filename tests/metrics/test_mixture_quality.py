import numpy as np
import pandas as pd
import pytest
import torch

from dcm.analysis import compare, tables
from dcm.metrics.metric import Metric, ode_error
from dcm.metrics.mixture import MixtureQuality, sliced_wasserstein
from dcm.support import ranks
from dcm.support.seeds import generator


def test_ode_error_is_the_mean_square():
    assert ode_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])) == 2.5


def test_sliced_wasserstein_of_a_shift():
    """A shift by v moves every projection by u.v, whose mean square over the circle is |v|^2 / 2."""
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([0.6, -0.8])
    assert sliced_wasserstein(x, x) == 0
    assert sliced_wasserstein(x, (x + shift)[torch.randperm(500)]) == pytest.approx(0.5**0.5, abs=1e-4)


def test_quality_of_exact_samples_and_of_lost_modes(teacher):
    quality = MixtureQuality(teacher)
    c = torch.arange(4000) % 4
    x = teacher.draw_class(generator("cpu", 5, "data"), c)
    good = quality.measure(x, c, x)
    assert good["swd_teacher"] == 0 and good["swd_data"] < 0.12 and good["modes"] == 1
    assert good["on_mode"] == pytest.approx(1 - np.exp(-4.5), abs=0.01)  # a chi-square with 2 degrees of freedom
    # all samples of each class on its last mode: one of three modes reached
    last = torch.tensor([np.flatnonzero(teacher.labels == k)[-1] for k in range(4)])
    collapsed = torch.as_tensor(teacher.means, dtype=torch.float32)[last[c]]
    bad = quality.measure(collapsed, c, x)
    assert bad["modes"] == pytest.approx(1 / 3) and bad["swd_data"] > 0.5 and bad["on_mode"] == 1
    swapped = quality.measure(x, (c + 1) % 4, x)
    assert swapped["nll"] > good["nll"] + 5 and swapped["on_mode"] < 0.1


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
    table = compare.verdicts(rows(ratio, difference), {"q": Metric("q", lower)}, 1000, 0.95)
    assert tuple(table.verdict) == expected
    assert table.value[0] == pytest.approx(ratio, rel=0.05) and table.value[1] == pytest.approx(difference, abs=0.05)


def test_few_seeds_decide_nothing():
    table = compare.verdicts(rows(0.2, 1.0, seeds=2), {"q": Metric("q")}, 500, 0.95)
    assert set(table.verdict) == {"inconclusive"}


def test_rank_correlation_sees_simpsons_paradox():
    """Within each setting quality falls with the error, over all of them it rises."""
    parts = []
    for k in range(4):
        e = np.linspace(1, 2, 8) + 3 * k
        parts.append(
            pd.DataFrame(dict(group=f"g{k}", solver="ddim", intervals=10, guidance=1.0, steps=1, final=True,
                              ode_error=e, q=10 * k - e))
        )  # fmt: skip
    table = compare.correlations(pd.concat(parts), "q", 500, 0.95)
    assert table.spearman[0] > 0.7 and table.low[0] > 0 and (table.spearman[1:] == -1).all()


def test_an_interval_does_not_hang_on_the_last_bits():
    """Of three seeds every fourth resample has each once; whether it lies below the mean is no matter of rounding."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.normal(0, 1, 3)
        nudged = np.nextafter(x, rng.choice([-np.inf, np.inf], 3))
        a, b = (compare.bootstrap(v, resamples=400) for v in (x, nudged))
        assert (a.low, a.high) == pytest.approx((b.low, b.high), rel=1e-5, abs=1e-6)


def test_the_bootstrap_interval_covers():
    """About 95 % of intervals hold the true mean; with 12 values a bootstrap is known to fall a little short."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        e = compare.bootstrap(rng.normal(0, 1, 12), resamples=400)
        covered += e.low < 0 < e.high
    assert 0.84 < covered / 200 < 1


def test_spearman_is_scipys():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (2, 5, 30))
    np.testing.assert_allclose(ranks.spearman(x, y), [spearmanr(a, b).statistic for a, b in zip(x, y)])


def test_equal_budgets_pair_the_direct_cm_with_a_cm_that_spent_as_much():
    """A CM whose error falls by 1 for each factor of e in updates, and costs a fifth of the Direct CM an update."""
    common = dict(group="g", solver="ddim", intervals=10, guidance=2.0, steps=1, final=True)
    rows = [
        common
        | dict(
            method=method, horizon=h, seed=seed, update=u, seconds=u * cost, network_evaluations=np.nan,
            ode_error=10 + seed - np.log(u),
        )
        for method, h, cost, updates in (("CM", 1, 1.0, (10, 100, 1000)), ("Direct CM", 10, 5.0, (10, 40)))
        for seed in range(3)
        for u in updates
    ]  # fmt: skip
    equal = tables.at_equal_budget(pd.DataFrame(rows), ["ode_error"])
    assert set(equal.group) == {"equal updates", "equal wall time"}  # evaluations are not known here
    cm = equal[equal.method == "CM"].set_index(["group", "seed"]).ode_error
    for seed in range(3):
        assert cm["equal updates", seed] == pytest.approx(10 + seed - np.log(40))
        assert cm["equal wall time", seed] == pytest.approx(10 + seed - np.log(200))
    assert set(equal[equal.method == "Direct CM"]["update"]) == {40}


def test_a_cm_that_never_spent_as_much_is_not_extrapolated():
    common = dict(group="g", solver="ddim", intervals=10, guidance=2.0, steps=1, final=True, seed=0)
    rows = [
        common | dict(method=m, horizon=h, update=u, seconds=u * 1.0, network_evaluations=u * cost, ode_error=1.0)
        for m, h, cost, u in (("CM", 1, 1, 10), ("CM", 1, 1, 100), ("Direct CM", 10, 9, 100))
    ]
    assert set(tables.at_equal_budget(pd.DataFrame(rows), ["ode_error"]).group) == {
        "equal updates",
        "equal wall time",
    }
