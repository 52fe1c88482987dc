"""Figures of the switch: where each objective leads from equal weights, both claims in one plane, the accounting."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcm.analysis.compare import STABLE
from dcm.analysis.switch import SWITCH, TERMS, same_side
from dcm.figures import style

PAPER = (0.8, 1.5)  # ODE error about 0.24 against 0.3, FID 158.6 against 103.9; known to us from a public summary alone
NAMES = {"gmm": "mixtures", "digits": "digits", "cifar10": "CIFAR-10", "sdxl": "SDXL's kind", "diffusers": "own teacher"}
STUDIES = dict(zip(NAMES.values(), ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")))
TERM_COLOURS = ["#0072B2", "#E69F00", "#CC79A7"]
MARKED = "black"


def switch(panels: Sequence[tuple[str, str, str, dict[str, pd.DataFrame]]]) -> Figure:
    """From equal weights at the switch (hollow) to where each objective leads: ODE error against distance, means over seeds.

    A panel for each (title, distance, its column, :func:`dcm.analysis.switch.course`); faint points are single seeds.
    """
    many = len(panels) > 4
    figure, axes = style.panels(len(panels), 2.5 if many else 3.2, 3 if many else 2)
    for ax, (title, label, column, of) in zip(axes, panels):
        for start, (direct, cm) in zip((("Direct CM", "s"), ("CM", "o")), SWITCH.values()):
            _arrows(ax, of, column, start, {direct: "Direct CM", cm: "CM"})
        anneal = of["after"][of["after"].method == "anneal"]
        if len(anneal):
            colour = style.COLOURS["total"]
            ax.scatter(anneal.ode_error, anneal[column], s=10, color=colour, alpha=0.35, lw=0)
            ax.plot(anneal.ode_error.mean(), anneal[column].mean(), "D", color=colour, ms=6, label="anneal, at the end")
        every = pd.concat(of.values())
        style.scale(ax, "y", every[column])
        style.scale(ax, "x", every.ode_error)
        if many:
            ax.xaxis.set_major_locator(style.LogTicks(most=3))
        ax.margins(0.12)
        title = title.replace(", N", "\nN") if many else title  # narrow panels
        ax.set(title=title, xlabel="ODE error" if many else style.ODE_ERROR.label, ylabel=label)
    return style.key(figure, ncols=2)


def _arrows(ax: Axes, of: dict[str, pd.DataFrame], column: str, start: tuple[str, str], ends: dict[str, str]) -> None:
    """From the students of the method `start` at the switch to the `ends`, by method with the objective that led there."""
    method, marker = start
    mean = lambda rows: rows[["ode_error", column]].mean().to_numpy()
    if not set(ends) <= set(of["after"].method):
        return
    before = mean(of["before"][of["before"].method == method])
    ax.plot(*before, marker, mfc="white", mec=MARKED, ms=8, mew=1.5, zorder=4)
    ax.plot([], [], marker, mfc="white", mec=MARKED, label=f"equal weights, after half as {method}")
    for end, objective in ends.items():
        rows, colour = of["after"][of["after"].method == end], style.COLOURS[objective]
        ax.scatter(rows.ode_error, rows[column], s=10, marker=marker, color=colour, alpha=0.35, lw=0)
        after = mean(rows)
        look = dict(arrowstyle="-|>", color=colour, lw=1.8, shrinkA=5, shrinkB=0, mutation_scale=14)
        ax.annotate("", after, before, arrowprops=look, zorder=3)
        ax.plot([], [], "-", color=colour, label=f"second half as {objective}")


def plane(points: pd.DataFrame) -> Figure:
    """Both claims at once: C1's ratio against C2's, a point a setting and encoder, and the paper's point; near it once more.

    `points` of :func:`dcm.analysis.switch.plane`: large those of a ``pair`` of :data:`SWITCH`, crosses where the CM is not
    known to be stable (``cm``).
    """
    figure, axes = style.panels(2, 3.4)
    points = points.sort_values("pair", key=lambda pair: pair.isin(SWITCH), kind="stable")  # large ones above the others
    start = np.where(points.pair.isin(SWITCH), "from equal weights (switch)", "trained whole")
    known = np.where(points.cm == STABLE, "stable CM", "CM not known to be stable")
    near = points[points.c1.between(0.5, 1.5)]
    for ax in axes:
        sns.scatterplot(
            x=points.c1, y=points.c2, hue=points.study.map(NAMES).to_numpy(), palette=STUDIES, alpha=0.7, ax=ax,
            size=start, sizes={"trained whole": 18, "from equal weights (switch)": 60},
            style=known, markers={"stable CM": "o", "CM not known to be stable": "X"},
        )  # fmt: skip
        ax.plot(*PAPER, "*", color=MARKED, ms=15, mec="white", zorder=6, label="paper (SDXL), second-hand")
        for line in (ax.axvline, ax.axhline):
            line(1, color=MARKED, lw=0.8)
        style.scale(ax, "x", [*points.c1, PAPER[0]])
        style.scale(ax, "y", [*points.c2, PAPER[1]])
        ax.set(xlabel="C1: ODE error, Direct CM / CM", ylabel="C2: distance ratio")
    axes[0].set_title("upper left of the lines: both claims hold")
    axes[1].set(title="near the paper's point", xlim=(0.5, max(1.1, 1.05 * near.c1.max())))
    axes[1].set_ylim(0.9 * min(near.c2.min(), 0.9), 1.1 * max(near.c2.max(), PAPER[1]))
    return style.key(figure, ncols=3)


def agreement(points: pd.DataFrame) -> Figure:
    """Which error tells whose samples are better: ratios of the ODE error, and of that after the judge's encoder, against C2.

    `points` of :func:`dcm.analysis.switch.beside_errors`. A title counts those whose two ratios lie to the same side of 1.
    """
    figure, axes = style.panels(2, 3.2, sharey=True)
    for ax, column, error in zip(axes, ("c1", "value_there"), ("ODE error", "ODE error in the judge's features")):
        sns.scatterplot(x=points[column], y=points.value, hue=points.study.map(NAMES).to_numpy(), palette=STUDIES, alpha=0.7, s=36, ax=ax)
        for line in (ax.axvline, ax.axhline):
            line(1, color=MARKED, lw=0.8)
        style.scale(ax, "x", points[column])
        style.scale(ax, "y", points.value)
        same = same_side(points, column).sum()
        ax.set(title=f"{error}: in {same} of {len(points)}\nit ranks the two as their samples do", xlabel=f"{error}, Direct CM / CM", ylabel="C2: distance ratio")
    return style.key(figure)


def accounting(table: pd.DataFrame) -> Figure:
    """The three terms of log C2 by setting and encoder, stacked from 0 to either side, their sum marked; a panel a pair."""
    unclear = (" (" + table.cm + ")").where(table.cm != STABLE, "")
    encoders = table.encoder.replace("x", "points").str.removesuffix("-Lite0")
    said = [f"{r.scale}\nN = {r.intervals:g}, w = {r.guidance:g}: " for r in table.itertuples()]
    table = table.assign(line=pd.Series(said, table.index) + encoders + unclear)
    lines = table.line.unique()
    figure, axes = style.panels(len(SWITCH), 1.5 + 0.32 * len(lines), sharey=True, sharex=True)
    for ax, pair in zip(axes, SWITCH):
        rows = table[table.pair == pair].set_index("line").reindex(lines)
        rows[list(TERMS)].rename(columns=TERMS).plot.barh(stacked=True, width=0.62, color=TERM_COLOURS, ax=ax)
        ax.plot(rows.log_c2, range(len(lines)), "D", color=MARKED, mec="white", ms=6, label="their sum, log C2")
        ax.set(title=pair, xlabel="log ratio, Direct / CM", ylabel="", ylim=(len(lines) - 0.4, -0.6))
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.05)
    apart = [line.rpartition(": ") for line in lines]  # a setting is named once
    once = [line if at != before else encoder for line, (before, *_), (at, _, encoder) in zip(lines, [("",), *apart], apart)]
    axes[0].set_yticks(range(len(lines)), once)
    return style.key(figure, ncols=1)
