"""One figure for each explanation of C2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcm.analysis.explanations import Prediction
from dcm.analysis.measured import METHODS
from dcm.figures import style

Made = dict[str, Sequence[Prediction]]  # predictions by study


def _by_regime(ax: Axes, table: pd.DataFrame, x: pd.Series, y: pd.Series) -> None:
    """A point a regime, coloured by study; its symbol says whether C2 is supported there."""
    for (family, holds), own in table.assign(x=x, y=y).groupby(["family", table.holds.astype(bool)]):
        colour, marker = style.FAMILIES.get(family, "black"), "^" if holds else "o"
        ax.scatter(own.x, own.y, s=30, marker=marker, color=colour, alpha=0.8, lw=0)
        ax.plot([], [], "s", color=colour, label=f"regimes of {family}")
    ax.plot([], [], "^", color=style.GREY, label="C2 supported")
    ax.plot([], [], "o", color=style.GREY, label="not supported")


def _drive(ax: Axes, table: pd.DataFrame, column: str, x_label: str, made: Made, statement: str) -> None:
    """What an explanation rests on against the effect of C2 on the distance to the teacher's samples, a point a regime."""
    _by_regime(ax, table, table[column], table.c2)
    ax.axhline(0, color="black", lw=0.8)
    ax.axvline(0, color="#888888", lw=0.6, ls=":")
    rho = {f: next(p.estimate for p in ps if p.statement == statement) for f, ps in made.items()}
    known = [f"{f} {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for f, e in rho.items() if np.isfinite(e.value)]
    ax.set(xlabel=style.wrapped(x_label), ylabel="C2 [log ratio]", title="\n".join(["Spearman's correlation", *known]))


def averaging(maps: dict[str, pd.DataFrame], table: pd.DataFrame, made: Made, statement: str) -> Figure:
    """Explanation 1: error by steepness of the ODE map; how much of it is averaging; whether that goes with C2.

    `maps` are rows of :meth:`dcm.evaluation.flow_maps.Maps.by_time` by name of what is shown.
    """
    figure, axes = style.panels(len(maps) + 2, 3.0)
    for ax, (name, rows) in zip(axes, maps.items()):
        rows = rows[rows.t == rows.t.max()]
        parts = sorted(c for c in rows if c.startswith("error_"))
        steepness = [c.replace("error", "lipschitz") for c in parts]
        for method in METHODS:
            own = rows[rows.method == method]
            look: dict[str, Any] = dict(color=style.COLOURS[method], mfc=None if len(own) > 1 else "white", capsize=2)
            marker, spread = style.MARKERS[method], own[parts].std()
            ax.errorbar(own[steepness].mean(), own[parts].mean(), spread, fmt=marker + "-", label=method, **look)
            style.hollow(ax, len(own) == 1)
        style.scale(ax, "x", rows[steepness].stack())
        style.scale(ax, "y", rows[parts].stack())
        ax.set(title=name, xlabel="Lipschitz constant of the ODE map", ylabel="error [mean squared]")
    ax = axes[-2]
    _by_regime(ax, table, table.averaging_direct - table.averaging, table.averaging_direct)
    ax.axline((1, 1), slope=1, color="black", lw=0.8)
    ax.axhline(1, color="#888888", lw=0.6, ls=":")
    ax.set(xlabel="CM", ylabel="Direct CM", title="averaging index: 1 for an average")
    _drive(axes[-1], table, "averaging", "averaging index, Direct CM - CM", made, statement)
    return style.key(figure)


def smoothing(maps: dict[str, pd.DataFrame], table: pd.DataFrame, made: Made, statement: str) -> Figure:
    """Explanation 2: how steep teacher, targets and students are, by time; whether a smoother CM goes with C2."""
    figure, axes = style.panels(len(maps) + 1, 3.0)
    for ax, (name, rows) in zip(axes, maps.items()):
        cm, direct = (rows[rows.method == method] for method in METHODS)
        style.line(ax, rows, "t", "gain_teacher", "teacher", "--", "ODE map, the Direct CM's target", "sd")
        style.line(ax, cm, "t", "gain_target", "CM", ":", "the CM's target", "sd")
        style.line(ax, cm, "t", "gain_student", "CM", error="sd")
        style.line(ax, direct, "t", "gain_student", "Direct CM", error="sd")
        style.scale(ax, "y", rows[["gain_teacher", "gain_target", "gain_student"]].stack())
        ax.set(xlabel="starting timestep t", ylabel="gain [rms |J d|]", title=f"{name}: the map from $x_t$ to data")
    _drive(axes[-1], table, "roughness", "log gain at the noisiest time, Direct CM / CM", made, statement)
    return style.key(figure, ncols=3)


def wandering(starts: pd.DataFrame, steps: pd.DataFrame, table: pd.DataFrame, made: Made, statement: str) -> Figure:
    """Explanation 3: how errors grow off the training distribution, C2 by sampling steps, and whether growth goes with C2.

    `starts` are rows of :meth:`dcm.evaluation.flow_maps.Maps.from_noise` with ``run``, `steps` has family, run, steps, value, low, high.
    """
    figure, axes = style.panels(3, 3.2)
    growth = {
        "from pure noise": starts.error_prior / starts.error_noised,
        "from own samples,\nnoised anew": starts.error_own / starts.error_renoised,
    }
    rows = pd.concat(starts.assign(growth=ratio, start=name) for name, ratio in growth.items())
    look: dict[str, Any] = dict(hue="method", hue_order=METHODS, palette=style.COLOURS, saturation=1, width=0.6)
    sns.boxplot(rows[rows.method.isin(METHODS)], x="start", y="growth", showfliers=False, ax=axes[0], **look)
    axes[0].set(xlabel="", ylabel="error growth [ratio]", title="every student, to its error\nfrom noised data")
    dashes = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]
    for k, (name, part) in enumerate(steps.groupby("run", sort=False)):
        look = dict(ls=dashes[k % len(dashes)], color=style.FAMILIES.get(part.family.iloc[0], "black"), lw=1.4)
        error = [part.value - part.low, part.high - part.value]
        axes[1].errorbar(part.steps * 1.02**k, part.value, error, label=name, marker="o", ms=4, capsize=2, **look)
    for ax in axes[:2]:
        ax.axhline(1, color="black", lw=0.8)
    if len(steps):
        style.scale(axes[1], "x", steps.steps, at_values=True)
        style.scale(axes[1], "y", steps.value)
    axes[1].set(xlabel="sampling steps", ylabel="C2 [ratio]", title="main groups, distance\nto the teacher's samples")
    _drive(axes[2], table, "own", "log growth of the error from own samples, Direct CM / CM", made, statement)
    return style.key(figure)


def discretising(table: pd.DataFrame, made: Made, statement: str) -> Figure:
    """Explanation 4: the ratio of errors to the N-step solution and to the true one, and whether the solver's error drives C2."""
    figure, axes = style.panels(2, 3.6)
    _by_regime(axes[0], table, np.exp(table.c1), np.exp(table.true))
    axes[0].axline((1, 1), (2, 2), color="black", lw=0.8)
    axes[0].axhline(1, color="#888888", lw=0.8, ls="--")
    for axis in "xy":
        style.scale(axes[0], axis, np.exp(pd.concat([table.c1, table.true])))
    axes[0].set(xlabel="N-step solution", ylabel="reference solution", title="error to a solution, Direct CM / CM")
    _drive(axes[1], table, "solver_share", "log of the solver's error over the CM's", made, statement)
    return style.key(figure)
