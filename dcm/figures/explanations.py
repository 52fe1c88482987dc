"""One figure for each explanation of C2."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dcm.analysis.explanations import Prediction
from dcm.figures.regimes import FAMILIES, panels, scale, wrapped
from dcm.figures.style import COLOURS, MARKERS, METHODS


def _key(ax) -> None:
    """A legend in a frame, lest its markers be taken for points."""
    ax.legend(fontsize=7.5, title="filled: C2 supported", title_fontsize=7, frameon=True, edgecolor="#999999")


def _drive(
    ax, table: pd.DataFrame, column: str, x_label: str, made: dict[str, Sequence[Prediction]], statement: str
) -> None:
    """What an explanation rests on against the effect of C2, a point a regime; open where C2 is not supported."""
    for family, part in table.groupby("family", sort=False):
        colour, marker = FAMILIES[family]
        for holds, own in part.groupby(part.holds.astype(bool)):
            face = colour if holds else "none"
            ax.scatter(
                own[column],
                own.c2,
                s=26,
                marker=marker,
                facecolor=face,
                edgecolor=colour,
                label=None if holds else family,
            )
        if part.holds.all():
            ax.scatter([], [], s=26, marker=marker, color=colour, label=family)
    ax.axhline(0, color="black", lw=0.8)
    ax.axvline(0, color="#888888", lw=0.6, ls=":")
    rho = {f: next(p.estimate for p in ps if p.statement == statement) for f, ps in made.items()}
    known = {f: e for f, e in rho.items() if np.isfinite(e.value)}
    title = "\n".join(f"{f}: Spearman {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for f, e in known.items())
    ax.set(xlabel=wrapped(x_label, 34), ylabel="C2: log ratio Direct CM / CM of\nthe distance to the teacher's samples")
    ax.set_title(title, fontsize=8)
    _key(ax)


def averaging(maps: dict[str, pd.DataFrame], table: pd.DataFrame, made: dict, statement: str) -> Figure:
    """Explanation 1: error by steepness of the ODE map; how much of it is averaging; whether that goes with C2.

    `maps` are rows of :meth:`dcm.evaluation.flow_maps.Maps.by_time` by name of what is shown.
    """
    figure, axes = panels(len(maps) + 2, 3.5, 3.4)
    for ax, (name, rows) in zip(axes, maps.items()):
        rows = rows[rows.t == rows.t.max()]
        parts = sorted(c for c in rows if c.startswith("error_"))
        for method in METHODS:
            own = rows[rows.method == method]
            x = [own[c.replace("error", "lipschitz")].mean() for c in parts]
            y, spread = own[parts].mean(), own[parts].std()
            ax.errorbar(x, y, yerr=spread, fmt=f"{MARKERS[method]}-", color=COLOURS[method], label=method, capsize=2)
        ax.set(title=name, xlabel="Lipschitz constant of the ODE map,\nquarters of points")
        for axis, values in (("x", pd.Series(x)), ("y", rows[parts].stack())):
            scale(ax, axis, values, log=True)
        ax.set_ylabel("error (mean squared)")
    axes[0].legend()
    ax = axes[-2]
    for family, part in table.groupby("family", sort=False):
        colour, marker = FAMILIES[family]
        faces = [colour if h else "none" for h in part.holds]
        ax.scatter(
            part.averaging_direct - part.averaging,
            part.averaging_direct,
            s=26,
            marker=marker,
            facecolors=faces,
            edgecolors=colour,
        )
    span = [min(ax.get_xlim()[0], ax.get_ylim()[0]), max(ax.get_xlim()[1], ax.get_ylim()[1])]
    ax.plot(span, span, color="black", lw=0.8)
    ax.axhline(1, color="#888888", lw=0.6, ls=":")
    ax.set(
        xlabel="averaging index of the CM",
        ylabel="averaging index of the Direct CM",
        title="1: errs as an average does",
    )
    _drive(axes[-1], table, "averaging", "averaging index, Direct CM - CM", made, statement)
    return figure


def smoothing(maps: dict[str, pd.DataFrame], table: pd.DataFrame, made: dict, statement: str) -> Figure:
    """Explanation 2: how steep teacher, targets and students are, by time; whether a smoother CM goes with C2."""
    figure, axes = panels(len(maps) + 1, 3.7, 3.4)
    for ax, (name, rows) in zip(axes, maps.items()):
        lines = [
            ("ODE map, the Direct CM's target", rows, "gain_teacher", COLOURS["teacher"], "D--"),
            ("the CM's target", rows[rows.method == "CM"], "gain_target", COLOURS["CM"], "o:"),
            ("CM", rows[rows.method == "CM"], "gain_student", COLOURS["CM"], "o-"),
            ("Direct CM", rows[rows.method == "Direct CM"], "gain_student", COLOURS["Direct CM"], "s-"),
        ]
        for text, part, column, colour, style in lines:
            by_t = part.groupby("t")[column].agg(["mean", "std"])
            ax.errorbar(
                by_t.index, by_t["mean"], yerr=by_t["std"], fmt=style, color=colour, ms=5, label=text, capsize=2
            )
        ax.set(xlabel="starting timestep t", ylabel="gain of the map from x_t to data\n(rms of |J d|)", title=name)
        scale(ax, "y", pd.concat([part[column] for _, part, column, _, _ in lines]), log=True)
    axes[0].legend(fontsize=7.5)
    _drive(axes[-1], table, "roughness", "log gain at the noisiest time, Direct CM / CM", made, statement)
    return figure


def wandering(starts: pd.DataFrame, steps: pd.DataFrame, table: pd.DataFrame, made: dict, statement: str) -> Figure:
    """Explanation 3: how errors grow off the training distribution, C2 by sampling steps, and whether growth goes with C2.

    `starts` are rows of :meth:`dcm.evaluation.flow_maps.Maps.from_noise` with ``run``, `steps` has family, run, steps, value, low, high.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11.2, 3.5))
    growth = {"pure noise\nfor noised data": ("error_prior", "error_noised"), "own samples noised anew\nfor noised data": ("error_own", "error_renoised")}  # fmt: skip
    parts = [
        starts.assign(growth=starts[a] / starts[b], start=name)[["method", "growth", "start"]]
        for name, (a, b) in growth.items()
    ]
    rows = pd.concat(parts)
    rows = rows[rows.method.isin(METHODS)]
    common = dict(x="start", y="growth", hue="method", hue_order=METHODS, palette=COLOURS, dodge=True, ax=axes[0])
    sns.boxplot(rows, **common, showfliers=False, width=0.6, linewidth=1)
    axes[0].axhline(1, color="black", lw=0.8)
    axes[0].legend(title=None)
    axes[0].set(xlabel="", ylabel="growth of the error (ratio)", title="every student")
    lines = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]
    for k, (name, part) in enumerate(steps.groupby("run", sort=False)):
        colour, marker = FAMILIES[part.family.iloc[0]]
        error = [part.value - part.low, part.high - part.value]
        look = dict(marker=marker, ls=lines[k % len(lines)], color=colour, lw=1.4, capsize=2)
        axes[1].errorbar(part.steps * 1.02**k, part.value, yerr=error, label=name, **look)
    axes[1].axhline(1, color="black", lw=0.8)
    if len(steps):
        axes[1].set_xscale("log")
        axes[1].set_xticks(sorted(steps.steps.unique()), [str(s) for s in sorted(steps.steps.unique())])
        axes[1].minorticks_off()
        scale(axes[1], "y", steps.value, log=True)
        axes[1].legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes[1].set(
        xlabel="sampling steps", ylabel="Direct CM / CM, distance\nto the teacher's samples", title="main groups"
    )
    _drive(axes[2], table, "own", "log growth of the error from own samples, Direct CM / CM", made, statement)
    return figure


def discretising(table: pd.DataFrame, made: dict, statement: str) -> Figure:
    """Explanation 4: the ratio of errors to the N-step solution and to the true one, and whether the solver's error drives C2."""
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.7))
    ax = axes[0]
    for family, part in table.groupby("family", sort=False):
        colour, marker = FAMILIES[family]
        faces = [colour if h else "none" for h in part.holds]
        ax.scatter(np.exp(part.c1), np.exp(part.true), s=26, marker=marker, facecolors=faces, edgecolors=colour)
        ax.scatter([], [], s=26, marker=marker, facecolor="none", edgecolor=colour, label=family)
    values = np.exp(pd.concat([table.c1, table.true]))
    span = [0.9 * values.min(), 1.1 * max(1.0, values.max())]
    ax.plot(span, span, color="black", lw=0.8)
    ax.axhline(1, color="#888888", lw=0.8, ls="--")
    for axis in "xy":
        scale(ax, axis, values, log=True)
    ax.set(
        xlabel="error to the N-step solution, Direct CM / CM", ylabel="error to the reference solution,\nDirect CM / CM"
    )
    _key(ax)
    _drive(axes[1], table, "solver_share", "log of the solver's error over the CM's", made, statement)
    return figure
