"""Legibility: what every figure gets from dcm.figures.style."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dcm.figures import study, style, switch
from dcm.metrics.metric import Metric

DISTANCE = Metric("Frechet distance to teacher (EfficientNet-Lite0 features)", ratio=True)
POWER = Metric("high-frequency power of samples [teacher = 1]", judged=False)


@pytest.fixture(autouse=True)
def _style():
    with matplotlib.rc_context():
        style.use_style()
        yield
    plt.close("all")


def rows(seeds: dict[float, int], methods=("CM", "Direct CM")) -> pd.DataFrame:
    """Rows at guidance w with so many seeds."""
    table = [(m, s, w, 0.1 * w + 0.01 * s, 3.0 + w, 1.0) for m in methods for w, n in seeds.items() for s in range(n)]
    return pd.DataFrame(table, columns=["method", "seed", "guidance", "ode_error", "distance", "power"])


@pytest.mark.parametrize("span", [1.05, 1.3, 2, 3, 8, 20, 200, 1e4, 1e12])
@pytest.mark.parametrize("low", [3e-4, 0.7, 1.0, 90.0])
def test_a_logarithmic_axis_has_three_to_nine_labels(low, span):
    _, ax = plt.subplots()
    ax.plot([low, low * span], [low, low * span])
    style.scale(ax, "y", pd.Series([low, low * span]))
    ax.figure.canvas.draw()
    bottom, top = ax.get_ylim()
    shown = [t.get_text() for t in ax.get_yticklabels() if bottom <= t.get_position()[1] <= top and t.get_text()]
    assert 3 <= len(set(shown)) == len(shown) <= 9 and ax.get_yscale() == "log"


@pytest.mark.parametrize(
    ("values", "scale"), [((171, 454), "linear"), ((-3, 40), "linear"), ((-450, 300), "linear"), ((-1, 1, 4000), "symlog"), ((2, 900), "symlog")]
)
def test_an_axis_of_differences_has_labels_whatever_it_spans(values, scale):
    """The 16-D mixture's NLL lies between 171 and 454 nats: no power of ten is there."""
    _, ax = plt.subplots()
    ax.plot(values)
    style.measured(ax, Metric("negative log-likelihood [nats]"), pd.Series(values))
    ax.figure.canvas.draw()
    bottom, top = ax.get_ylim()
    shown = {t.get_text() for t in ax.get_yticklabels() if bottom <= t.get_position()[1] <= top and t.get_text()}
    assert len(shown) >= (3 if scale == "linear" else 2) and ax.get_yscale() == scale


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_figure_is_1400_dots_wide_with_two_panels_a_row(count):
    figure, axes = style.panels(count)
    assert figure.get_size_inches()[0] * plt.rcParams["savefig.dpi"] == 1400 and len(axes) == count
    assert axes[0].get_subplotspec().get_gridspec().ncols == min(2, count)


@pytest.mark.parametrize("shown", [["distance"], ["distance", "power"]])
def test_the_legend_lies_outside_of_data_and_says_what_is_hollow(shown):
    metrics = {"distance": DISTANCE, "power": POWER}
    figure = study.sweep(rows({1: 1, 2: 3, 4: 1}), "guidance", "w", metrics, shown)
    figure.canvas.draw()
    drawn = [ax for ax in figure.axes if ax.axison]
    [legend] = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    box = legend.get_window_extent()
    assert not any(box.overlaps(ax.get_window_extent()) for ax in drawn)
    assert [t.get_text() for t in legend.get_texts()] == ["CM", "Direct CM", "hollow: one seed"]
    for ax in drawn:
        hollow = [[tuple(f) == (1, 1, 1, 1) for f in c.get_facecolors()] for c in ax.collections]
        assert hollow.count([True, False, True]) == 2  # of either method, by guidance
        assert len(ax.get_ylabel().split("[")[0].split()) <= 3
        assert all(
            t.get_fontsize() >= 9 for t in [ax.title, ax.xaxis.label, *ax.get_xticklabels(), *legend.get_texts()]
        )


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8, 9])
def test_the_legend_of_the_switch_lies_in_the_figure_and_outside_of_data(count):
    """From five panels on there are three in a row, and one free place of three is too narrow for it."""
    ends = pd.DataFrame([(m, 0.1 + 0.02 * i, 1.0 + i) for i, m in enumerate(["Direct CM", "direct>cm", "cm>direct", "CM"])], columns=["method", "ode_error", "d"])
    figure = switch.switch([(f"panel {k}", "distance, EfficientNet-Lite0", "d", {"before": ends, "after": ends}) for k in range(count)])
    figure.canvas.draw()
    [legend] = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    box = legend.get_window_extent()
    assert not any(box.overlaps(ax.get_tightbbox()) for ax in figure.axes if ax.axison)
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_nothing_is_hollow_where_every_point_has_seeds_and_one_method_is_enough():
    figure = study.sweep(rows({1: 2, 2: 2}, ["CM"]), "guidance", "w", {"distance": DISTANCE}, ["distance"])
    [legend] = figure.legends
    assert "hollow: one seed" not in [t.get_text() for t in legend.get_texts()]


def test_labels_say_what_direction_and_unit():
    _, ax = plt.subplots()
    style.measured(ax, DISTANCE, pd.Series([1.0, 2.0]))
    assert ax.get_ylabel() == "Frechet distance"
    assert ax.get_title().replace("\n", " ").replace("\xa0", " ") == f"{DISTANCE.label} (lower is better)"
    style.measured(ax, POWER, pd.Series([1.0, np.nan]))
    assert ax.get_ylabel().replace("\n", " ") == "high-frequency power [teacher = 1]"
    assert ax.get_title() == "high-frequency power of samples"


def test_ticks_at_values_leave_room_for_their_labels():
    _, ax = plt.subplots()
    style.scale(ax, "x", pd.Series([8, 37, 172, 400, 608, 800]), at_values=True)
    assert sorted(ax.get_xticks()) == [8, 37, 172, 400, 800]  # 608 stands too near
    style.scale(ax, "x", pd.Series([150, 696, 3232, 7500, 11250, 15000]), at_values=True)
    assert sorted(ax.get_xticks()) == [150, 696, 3232, 15000], "longer labels need more room"
