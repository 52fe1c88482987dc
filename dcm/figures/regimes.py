"""Figures of regimes: effects, trainings, measures, slopes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dcm.analysis.regime_verdicts import curves
from dcm.analysis.regimes import FURTHER, REGIME, differences
from dcm.analysis.runs import Run
from dcm.analysis.slopes import Slopes
from dcm.figures.style import COLOURS, MARKERS, METHODS
from dcm.figures.style import scale as scaled

VERDICTS = {
    "supported": ("#D55E00", "^"), "inconclusive": ("#888888", "o"), "contradicted": ("#0072B2", "v"),
}  # fmt: skip
PALE = {"supported": "#F4BE98", "inconclusive": "#E4E4E4", "contradicted": "#9CCBE8"}  # under black text
SIGNS = {"supported": "▲", "inconclusive": "•", "contradicted": "▼"}
FAMILIES = {"gmm": ("#009E73", "o"), "digits": ("#CC79A7", "s"), "cifar10": ("#E69F00", "D"), "sdxl": ("#56B4E9", "P")}


def scale(ax, which: str, values: pd.Series, log: bool) -> None:
    """:func:`dcm.figures.style.scale` without labels between the powers of ten, which overlap in small panels."""
    scaled(ax, which, values, log)
    if log:
        (ax.xaxis if which == "x" else ax.yaxis).set_minor_formatter(NullFormatter())


def panels(panels: int, width: float, height: float) -> tuple[Figure, list]:
    """A figure of so many panels, three a row at most, each `width` x `height` inches; and its axes in order."""
    columns, lines = min(3, panels), -(-panels // 3)
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False)
    for ax in axes.flat[panels:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:panels])


def wrapped(text: str, width: int = 34) -> str:
    """Text in lines."""
    return "\n".join(textwrap.wrap(text, width))


def effects(claims: pd.DataFrame, runs: Sequence[Run]) -> Figure:
    """C1 and C2 in every regime: ratios Direct CM / CM with their intervals; a row a regime, a column a measure.

    The third column is the distance to data. Above 1 the Direct CM is worse.
    """
    primary = {r.name: ("ode_error", r.primary, r.against_data) for r in runs}
    regimes = claims[[*REGIME, "regime"]].drop_duplicates().reset_index(drop=True)
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 1.1 + 0.2 * len(regimes)), sharey=True)
    place = {tuple(row): i for i, row in enumerate(regimes[REGIME].itertuples(index=False))}
    titles = ("C1: ODE error", "C2: distance to teacher's samples", "C2: distance to data")
    for k, (ax, title) in enumerate(zip(axes, titles)):
        part = claims[[primary[r.run][k] == r.metric for r in claims.itertuples()]]
        for verdict, (colour, marker) in VERDICTS.items():
            own = part[part.verdict == verdict]
            y = [place[tuple(row)] for row in own[REGIME].itertuples(index=False)]
            low, high = (own.value - own.low).clip(lower=0), (own.high - own.value).clip(lower=0)
            ax.errorbar(own.value, y, xerr=[low, high], fmt=marker, color=colour, ms=5, lw=1.2, label=verdict)
        ax.axvline(1, color="black", lw=0.8)
        scale(ax, "x", part.value, log=True)
        ax.set(title=title, xlabel="Direct CM / CM")
    axes[0].set_yticks(range(len(regimes)), [f"{r.run}: {r.regime}" for r in regimes.itertuples()], fontsize=7.5)
    axes[0].set_ylim(len(regimes) - 0.4, -0.6)
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for i in range(1, len(regimes)):
        if regimes.run[i] != regimes.run[i - 1]:
            [ax.axhline(i - 0.5, color="#bbbbbb", lw=0.8) for ax in axes]
    return figure


def training(runs: Sequence[Run]) -> Figure:
    """ODE error, distance to the teacher's samples and to data against updates, of trainings at a constant rate."""
    parts = [(r, group, p) for r in runs for group, p in r.rows[r.rows.curve].groupby("group")]
    figure, axes = plt.subplots(len(parts), 3, figsize=(9.6, 2.7 * len(parts)), squeeze=False)
    for line, (run, group, part) in zip(axes, parts):
        lr = run.groups[group].parameters["lr"]
        columns = {"ode_error": "ODE error (mean squared)", run.primary: "", run.against_data: ""}
        for ax, (column, name) in zip(line, columns.items()):
            sns.lineplot(
                part[part.method.isin(METHODS)], x="update", y=column, hue="method", style="method", hue_order=METHODS,
                style_order=METHODS, palette=COLOURS, markers=MARKERS, dashes=False, errorbar=("ci", 95), n_boot=2000,
                seed=0, ax=ax, legend=ax is axes[0, 0],
            )  # fmt: skip
            ax.set(xscale="log", xlabel="updates", ylabel=wrapped(name or run.metrics[column].label, 28))
            scale(ax, "y", part[column], log=True)
            ax.set_title(f"{run.name}, learning rate {lr:g}", fontsize=9)
    axes[0, 0].legend(title=None)
    return figure


def measures(claims: pd.DataFrame, runs: Sequence[Run], family: str) -> Figure:
    """The verdicts of one study as a grid: a row a regime, a column a measure, in each cell the effect.

    Effects are ratios Direct CM / CM, of measures that have no ratio differences (with a sign). Measures of which neither
    direction is better have no verdict and come last, white.
    """
    own, those = claims[claims.family == family], [r for r in runs if r.family == family]
    metrics = those[0].metrics
    labels = {"ode_error": "ODE error (C1)"} | {k: m.label for k, m in metrics.items()}
    unjudged = [k for k, m in metrics.items() if not m.judged]
    columns = [k for k in labels if k in set(own.metric)] + unjudged
    rows = own[[*REGIME, "regime"]].drop_duplicates().reset_index(drop=True)
    place = {tuple(row): i for i, row in enumerate(rows[REGIME].itertuples(index=False))}
    figure, ax = plt.subplots(figsize=(2.8 + 0.72 * len(columns), 2.1 + 0.19 * len(rows)))
    for r in own.itertuples():
        x, y = columns.index(r.metric), place[tuple(getattr(r, k) for k in REGIME)]
        ax.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=PALE[r.verdict], edgecolor="white"))
        value = f"{r.value:.3g}" if r.effect == "ratio" else f"{r.value:+.{2 if abs(r.value) < 100 else 3}g}"
        ax.text(x + 0.5, y + 0.52, f"{SIGNS[r.verdict]} {value}", fontsize=6.5, ha="center", va="center")
    for k in unjudged:
        for setting, value in pd.concat([differences(r.rows, k) for r in those]).items():
            if setting in place:
                ax.text(columns.index(k) + 0.5, place[setting] + 0.52, f"{value:+.2g}", fontsize=6.5, ha="center", va="center")  # fmt: skip
    ax.axvline(1, color="black", lw=1)
    for i in range(1, len(rows)):
        if rows.run[i] != rows.run[i - 1]:
            ax.axhline(i, color="black", lw=0.8)
    ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    ax.set_yticks(np.arange(len(rows)) + 0.5, [f"{r.run}: {r.regime}" for r in rows.itertuples()], fontsize=7)
    ax.set_xticks(np.arange(len(columns)) + 0.5, [wrapped(labels[k], 30) for k in columns], fontsize=7)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    plt.setp(ax.get_xticklabels(), rotation=90, ha="center", va="bottom")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    faces = [plt.Rectangle((0, 0), 1, 1, facecolor=PALE[v], label=f"{SIGNS[v]} {v}") for v in PALE]
    figure.legend(handles=faces, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def onset(claims: pd.DataFrame, runs: Sequence[Run]) -> Figure:
    """Ratios Direct CM / CM against updates, of trainings at a constant rate: where C1 begins, and where C2 does.

    Lines: ODE error, distances to the teacher's samples and to data, dashed by a further encoder; bands: intervals;
    filled points: the claim is supported.
    """
    parts = [(r, group, p) for r in runs for group, p in curves(r, claims).groupby("group")]
    few = len(parts) < 3
    figure, axes = panels(len(parts), 6.6 / len(parts) if few else 3.3, 3.0)  # wide enough for the legend
    teacher, data = "#009E73", "#CC79A7"
    for ax, (run, group, part) in zip(axes, parts):
        looks = {
            "ode_error": ("ODE error", "black", "-", "D"),
            run.primary: ("distance to the teacher's samples", teacher, "-", "o"),
            run.against_data: ("distance to data", data, "-", "s"),
        }
        further = next(((a, b) for a, b in FURTHER.items() if a in set(part.metric)), ())
        for metric, text, colour, marker in zip(
            further, ("to the teacher's samples", "to data"), (teacher, data), "os"
        ):
            looks[metric] = (f"{text}, further encoder", colour, "--", marker)
        for metric, (text, colour, style, marker) in looks.items():
            own = part[part.metric == metric]
            if not len(own):
                continue
            ax.plot(own["update"], own.value, style, color=colour, lw=1.5, label=text)
            ax.fill_between(own["update"], own.low, own.high, color=colour, alpha=0.15, lw=0)
            face = [colour if v == "supported" else "white" for v in own.verdict]
            ax.scatter(own["update"], own.value, s=24, marker=marker, c=face, edgecolors=colour, zorder=3)
        ax.axhline(1, color="#555555", lw=0.8)
        ax.set(xscale="log", xlabel="updates", ylabel="Direct CM / CM")
        scale(ax, "y", part.value[part.metric.isin(looks)], log=True)
        low, high = ax.get_ylim()
        ticks = np.r_[0.1:1:0.1, 1:2:0.2, 2:6] if high < 4 * low else np.array([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
        ax.set_yticks(ticks[(ticks >= low) & (ticks <= high)])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.set_title(f"{run.name}, learning rate {run.groups[group].parameters['lr']:g}", fontsize=9)
    handles = {text: h for ax in axes for h, text in zip(*ax.get_legend_handles_labels())}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2 if few else 3, fontsize=8,
        title="above 1 the Direct CM is worse; filled: the claim is supported (C1: ODE error, C2: distances)",
        title_fontsize=8,
    )  # fmt: skip
    return figure


def simpson(parts: dict[str, tuple[pd.DataFrame, str, Slopes]], labels: dict[str, str], by: Sequence[str]) -> Figure:
    """ODE error against quality, every student: the slope over all of them, and the slopes within settings.

    `parts` maps a name to (students with columns x, y, in logarithms; the metric; slopes); `by` are the columns of a setting.
    """
    figure, axes = plt.subplots(1, len(parts), figsize=(4.8 * len(parts), 3.9), squeeze=False)
    for ax, (name, (rows, _, found)) in zip(axes[0], parts.items()):
        for method in [*METHODS, "others"]:
            own = rows[rows.method == method] if method in METHODS else rows[~rows.method.isin(METHODS)]
            if len(own):
                ax.scatter(
                    np.exp(own.x), np.exp(own.y), s=16, color=COLOURS.get(method, "#999999"), label=method if method in METHODS else "horizons between",
                    marker=MARKERS.get(method, "."), edgecolor="white", linewidth=0.3, zorder=3,
                )  # fmt: skip
        for _, group in rows.groupby(list(by)):
            ends = np.array([group.x.min(), group.x.max()])
            if len(group) >= 3 and group.x.std() > 0:
                line = np.polyval(np.polyfit(group.x, group.y, 1), ends)
                ax.plot(np.exp(ends), np.exp(line), color="#555555", lw=0.8, alpha=0.7, zorder=2)
        ends = np.array([rows.x.min(), rows.x.max()])
        pooled = np.polyval([found.pooled.value, rows.y.mean() - found.pooled.value * rows.x.mean()], ends)
        ax.plot(np.exp(ends), np.exp(pooled), "--", color="black", lw=1.8, zorder=4, label="all students")
        ax.plot([], [], color="#555555", lw=0.8, label="one setting")
        text = "\n".join(
            f"slope {what}: {e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"
            for what, e in (("over all", found.pooled), ("within settings", found.within))
        )
        scale(ax, "x", np.exp(rows.x), log=True)
        scale(ax, "y", np.exp(rows.y), log=True)
        ax.set(xlabel="ODE error (mean squared)", ylabel=wrapped(labels[name]))
        ax.set_title(f"{name}\n{text}", fontsize=8.5)
        ax.legend(fontsize=7)
    return figure
