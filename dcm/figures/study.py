"""Figures of one study."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dcm.analysis.compare import SETTING, final_one_step
from dcm.figures.style import COLOURS, MARKERS, METHODS, scale
from dcm.metrics.metric import Metric
from dcm.solvers import SOLVER_NAMES


def _lines(ax, rows: pd.DataFrame, x: str, y: str, label: str, log_y: bool, legend: bool) -> None:
    """Mean over seeds and its bootstrap interval, one line a method."""
    sns.lineplot(
        rows, x=x, y=y, hue="method", style="method", hue_order=METHODS, style_order=METHODS, palette=COLOURS,
        markers=MARKERS, dashes=False, errorbar=("ci", 95), n_boot=2000, seed=0, err_style="band", ax=ax, legend=legend,
    )  # fmt: skip
    scale(ax, "y", rows[y], log_y)
    ax.set(ylabel=label)
    if legend:
        ax.legend(title=None)


def _panels(metrics: dict[str, Metric], shown: list[str]) -> list[tuple[str, str, bool]]:
    """(column, axis label, log axis) of the ODE error and of the quality metrics to show."""

    def label(metric: Metric) -> str:
        direction = "lower" if metric.lower_is_better else "higher"
        return "\n".join([*textwrap.wrap(metric.label, 26), *([f"({direction} is better)"] if metric.judged else [])])

    quality = [(k, label(metrics[k]), metrics[k].ratio) for k in shown]
    return [("ode_error", "ODE error (mean squared)\n(lower is better)", True), *quality]


def sweep(
    rows: pd.DataFrame,
    x: str,
    x_label: str,
    metrics: dict[str, Metric],
    shown: list[str],
    log_x: bool = False,
    teacher: pd.DataFrame | None = None,
) -> Figure:
    """ODE error and quality of CM and Direct CM along one setting `x`; the teacher's own quality dashed.

    fig3 (guidance), fig4 (intervals), fig6 (sampling steps) and fig7 (updates).
    """  # fmt: skip
    rows = rows[rows.method.isin(METHODS)]
    panels = _panels(metrics, shown)
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.0))
    for i, (ax, (column, label, log_y)) in enumerate(zip(axes, panels)):
        _lines(ax, rows, x, column, label, log_y, legend=i == 0)
        has_own = teacher is not None and column in teacher and (teacher[column] > 0).any()
        if teacher is not None and has_own and column != "ode_error" and not column.endswith("teacher"):
            own = teacher.sort_values(x)
            ax.plot(own[x], own[column], "--D", ms=4, color=COLOURS["teacher"], label="teacher", zorder=1)
            ax.legend()
        ax.set_xlabel(x_label)
        if log_x:
            ax.set_xscale("log")
        values = sorted(rows[x].unique())
        if len(values) <= 8:
            ax.set_xticks(values, [f"{v:g}" for v in values])
            ax.minorticks_off() if log_x else None
    return figure


BUDGET_LABELS = {
    "update": "updates",
    "network_evaluations": "network evaluations,\nteacher's and student's",
    "seconds": "wall time of training [s]",
}


def budgets(curves: pd.DataFrame, metrics: dict[str, Metric], shown: list[str]) -> Figure:
    """fig11: CM and Direct CM, each trained alone, against what they have spent; a row a metric, a column a budget."""
    panels, columns = _panels(metrics, shown), [c for c in BUDGET_LABELS if curves[c].notna().any()]
    figure, axes = plt.subplots(
        len(panels), len(columns), figsize=(3.4 * len(columns), 2.6 * len(panels)), sharey="row", squeeze=False
    )
    # the same snapshot of every seed at one place, or there would be no band
    mean = curves.assign(**{c: curves.groupby(["method", "update"])[c].transform("mean") for c in columns})
    for i, (column, label, log_y) in enumerate(panels):
        for j, budget in enumerate(columns):
            _lines(axes[i, j], mean, budget, column, label, log_y, legend=i == j == 0)
            axes[i, j].set(xscale="log", xlabel=BUDGET_LABELS[budget] if i == len(panels) - 1 else "")
    return figure


def solvers(rows: pd.DataFrame, metrics: dict[str, Metric], shown: list[str]) -> Figure:
    """fig5: one point a student, by solver and method, with the mean."""
    rows = rows[rows.method.isin(METHODS)].assign(solver=lambda r: r.solver.map(SOLVER_NAMES))
    order = [n for n in SOLVER_NAMES.values() if n in set(rows.solver)]
    panels = _panels(metrics, shown)
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.0))
    for i, (ax, (column, label, log_y)) in enumerate(zip(axes, panels)):
        common = dict(
            x="solver", y=column, hue="method", order=order, hue_order=METHODS, palette=COLOURS, dodge=True, ax=ax
        )
        sns.stripplot(rows, **common, alpha=0.6, size=4, legend=i == 0, jitter=0.08)
        sns.pointplot(
            rows,
            **(common | {"dodge": 0.4}),
            errorbar=None,
            markers="_",
            markersize=16,
            linestyles="none",
            legend=False,
        )
        scale(ax, "y", rows[column], log_y)
        ax.set(xlabel="teacher's ODE solver", ylabel=label)
        if i == 0:
            ax.legend(title=None)
    return figure


def horizon_curve(rows: pd.DataFrame, metrics: dict[str, Metric], shown: list[str]) -> Figure:
    """fig8: ODE error and quality against the horizon h, from the CM (h = 1) to the Direct CM (h = N)."""
    panels = _panels(metrics, shown)
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.0))
    horizons = sorted(rows.horizon.unique())
    for ax, (column, label, log_y) in zip(axes, panels):
        sns.lineplot(rows, x="horizon", y=column, color="#555555", errorbar=("ci", 95), n_boot=2000, seed=0, ax=ax)
        means = rows.groupby("horizon")[column].mean()
        for h, name in ((horizons[0], "CM"), (horizons[-1], "Direct CM")):
            if name in set(rows.method):
                ax.plot(h, means[h], MARKERS[name], color=COLOURS[name], ms=8, label=name, zorder=3)
        ax.plot(horizons, means[horizons], "o", color="#555555", ms=4, zorder=2)
        ax.set_xscale("log")
        scale(ax, "y", rows[column], log_y)
        ax.set_xticks(horizons, [str(h) for h in horizons])
        ax.minorticks_off()
        ax.set(xlabel="horizon h [teacher steps]", ylabel=label)
    axes[0].legend()
    return figure


def error_by_time(rows: pd.DataFrame, exact: bool) -> Figure:
    """fig9: mean squared errors of the solution from x_t, by starting time, split into their parts.

    `rows` has columns method, seed, t, student_error (student against the teacher's solution), solver_error (the
    teacher's solution against the reference) and total_error (student against the reference).
    """
    methods = [m for m in METHODS if m in set(rows.method)]
    figure, axes = plt.subplots(1, len(methods), figsize=(4.2 * len(methods), 3.2), sharey=True, squeeze=False)
    truth = "true ODE solution" if exact else "fine-grid solution"
    parts = {
        "student_error": ("student's part: student - teacher", "-", "o", None),
        "solver_error": (f"solver's part: teacher - {truth}", "--", "D", COLOURS["teacher"]),
        "total_error": (f"total: student - {truth}", ":", "^", "#009E73"),
    }
    for ax, method in zip(axes[0], methods):
        part = rows[rows.method == method]
        for column, (label, line, marker, colour) in parts.items():
            sns.lineplot(
                part, x="t", y=column, ax=ax, color=colour or COLOURS[method], linestyle=line, marker=marker,
                errorbar=("ci", 95), n_boot=1000, seed=0, label=label,
            )  # fmt: skip
        ax.set(yscale="log", xlabel="starting timestep t", ylabel="mean squared error", title=method)
        ax.legend(fontsize=7.5, loc="best")
    return figure


def error_against_quality(
    rows: pd.DataFrame, metrics: dict[str, Metric], primary: str, correlation: pd.DataFrame, verdict_lines: list[str]
) -> Figure:
    """fig10: ODE error against the primary quality metric over every student, and what it says of the claims."""
    last = final_one_step(rows)
    figure, (ax, text) = plt.subplots(1, 2, figsize=(9.2, 4.0), width_ratios=[1.35, 1])
    settings = last.groupby(SETTING, sort=True)
    shades = sns.color_palette("colorblind", max(10, settings.ngroups))
    for colour, (_, part) in zip(shades, settings):
        line = part.groupby("horizon")[["ode_error", primary]].mean().sort_index()
        ax.plot(line.ode_error, line[primary], "-", color=colour, lw=0.9, alpha=0.6, zorder=1)
    others = last[~last.method.isin(METHODS)]
    if len(others):
        ax.scatter(others.ode_error, others[primary], s=16, color="#999999", label="horizons between", zorder=2)
    for method in METHODS:
        part = last[last.method == method]
        ax.scatter(part.ode_error, part[primary], s=22, color=COLOURS[method], marker=MARKERS[method], label=method,
                   edgecolor="white", linewidth=0.4, zorder=3)  # fmt: skip
    ax.set(xlabel="ODE error (mean squared)", ylabel="\n".join(textwrap.wrap(metrics[primary].label, 36)))
    scale(ax, "x", last.ode_error, log=True)
    scale(ax, "y", last[primary], log=metrics[primary].ratio)
    ax.legend(title="lines: one setting, by horizon", title_fontsize=8)
    text.axis("off")
    rho = correlation.iloc[0]
    lines = [
        f"Spearman, all {int(rho.runs)} students: {rho.spearman:.2f}  [{rho.low:.2f}, {rho.high:.2f}]",
        *verdict_lines,
    ]
    text.text(0, 1, "\n".join(lines), va="top", fontsize=9, linespacing=1.5, transform=text.transAxes, wrap=True)
    return figure


def convergence(table: pd.DataFrame) -> Figure:
    """Solver error against the number of intervals, with the observed order (notebook 1).

    `table` has columns solver, guidance, intervals, error (root mean square to the reference).
    """
    guidance = sorted(table.guidance.unique())
    figure, axes = plt.subplots(1, len(guidance), figsize=(3.1 * len(guidance), 3.0), sharey=True, squeeze=False)
    for ax, w in zip(axes[0], guidance):
        part = table[table.guidance == w].assign(solver=lambda r: r.solver.map(SOLVER_NAMES))
        sns.lineplot(
            part, x="intervals", y="error", hue="solver", style="solver", markers=True, palette="colorblind", ax=ax
        )
        ax.set(
            xscale="log", yscale="log", xlabel="intervals N", ylabel="RMS distance to the reference", title=f"w = {w:g}"
        )
        ax.legend(title=None)
    return figure


def loss_curves(losses: np.ndarray, window: int, labels: list[str]) -> Figure:
    """Training loss, averaged over windows of updates; one line a method, seeds averaged (notebook 2).

    `losses` is (points, M), `labels` (M,) the method of each member.
    """
    figure, ax = plt.subplots(figsize=(5, 3))
    x: np.ndarray = window * np.arange(1, len(losses) + 1)
    shades = iter(sns.color_palette("viridis", len(set(labels)) + 2))
    for label in dict.fromkeys(labels):
        mean = losses[:, [i for i, name in enumerate(labels) if name == label]].mean(1)
        ax.plot(x, mean, color=COLOURS.get(label) or next(shades), label=label, lw=1.4)
    ax.set(yscale="log", xlabel="update", ylabel="loss (each to its own target)")
    ax.legend(ncols=2)
    return figure
