"""Figures of one study."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from dcm.analysis.measured import BETWEEN, METHODS, SETTING, constant, final_one_step
from dcm.figures import style
from dcm.metrics.metric import Metric
from dcm.solvers import SOLVER_NAMES


def sweep(
    rows: pd.DataFrame, x: str, x_label: str, metrics: dict[str, Metric], shown: list[str], log_x: bool = False, teacher=None
) -> Figure:
    """ODE error and quality of CM and Direct CM along one setting `x`; those of the `teacher`'s own rows dashed.

    fig3 (guidance), fig4 (intervals), fig6 (sampling steps), fig7 (updates), and fig8 (horizon), from the CM (h = 1) to
    the Direct CM (h = N), with what lies between.
    """
    between, wanted = x == "horizon", {"ode_error": style.ODE_ERROR} | {name: metrics[name] for name in shown}
    rows = constant(rows) if between else rows[rows.method.isin(METHODS)]
    figure, axes = style.panels(len(wanted))
    for ax, (column, metric) in zip(axes, wanted.items()):
        if between:
            style.line(ax, rows, x, column, style.BETWEEN)
        for method in METHODS:
            style.line(ax, rows[rows.method == method], x, column, method)
        style.measured(ax, metric, rows[column])
        own = teacher is not None and column in teacher and not column.endswith("teacher")  # to itself: noise alone
        if own and (teacher[column] > 0).any():
            means = teacher.groupby(x)[column].mean()
            ax.plot(means, "--D", ms=4, color=style.COLOURS["teacher"], label="teacher", zorder=1)
        style.scale(ax, "x", rows[x], log_x, at_values=True)
        ax.set_xlabel(x_label)
    return style.key(figure)


def solvers(rows: pd.DataFrame, metrics: dict[str, Metric], shown: list[str]) -> Figure:
    """fig5: one point a student, by solver and method, with the mean."""
    rows = rows[rows.method.isin(METHODS)].assign(solver=lambda r: r.solver.map(SOLVER_NAMES))
    order = [n for n in SOLVER_NAMES.values() if n in set(rows.solver)]
    figure, axes = style.panels(1 + len(shown))
    for ax, (column, metric) in zip(axes, [("ode_error", style.ODE_ERROR), *((name, metrics[name]) for name in shown)]):
        for method, shift in zip(METHODS, (-0.15, 0.15)):
            own, colour = rows[rows.method == method], style.COLOURS[method]
            at = own.solver.map(order.index) + shift
            ax.scatter(at, own[column], s=20, marker=style.MARKERS[method], color=colour, alpha=0.6, label=method)
            means = own.groupby(at)[column].mean()
            ax.hlines(means, means.index - 0.12, means.index + 0.12, color=colour, lw=2)
        style.measured(ax, metric, rows[column])
        ax.set_xticks(range(len(order)), order)
        ax.set(xlabel="teacher's ODE solver", xlim=(-0.5, len(order) - 0.5))
    return style.key(figure)


def error_by_time(rows: pd.DataFrame, exact: bool) -> Figure:
    """fig9: mean squared errors of the solution from x_t, by starting time, split into their parts.

    `rows` are those of :func:`dcm.evaluation.students.error_by_starting_time`.
    """
    figure, axes = style.panels(len(METHODS), 3.2, sharey=True)
    truth = "true ODE solution" if exact else "fine-grid solution"
    for ax, method in zip(axes, METHODS):
        part = rows[rows.method == method]
        style.line(ax, part, "t", "student_error", method, text=f"student's part: {method} - teacher")
        style.line(ax, part, "t", "solver_error", "teacher", "--", f"solver's part: teacher - {truth}")
        style.line(ax, part, "t", "total_error", "total", ":", f"total: student - {truth}")
        style.scale(ax, "y", rows[["student_error", "solver_error", "total_error"]].stack())
        ax.set(xlabel="starting timestep t", ylabel="error [mean squared]", title=method)
    return style.key(figure, ncols=2)


def error_against_quality(rows: pd.DataFrame, metrics: dict[str, Metric], primary: str) -> Figure:
    """fig10: ODE error against the primary metric over every student, a thin line a setting."""
    last = final_one_step(rows)
    figure, [ax] = style.panels(1, 4.2)
    for _, part in last.groupby(SETTING, sort=True):
        mean = constant(part).groupby("horizon")[["ode_error", primary]].mean().sort_index()
        ax.plot(mean.ode_error, mean[primary], "-", color=style.GREY, lw=0.8, alpha=0.7, zorder=1)
    ax.plot([], [], "-", color=style.GREY, lw=0.8, label="one setting, by horizon")
    between = last.method.str.fullmatch(BETWEEN).map({True: style.BETWEEN, False: style.CHANGED})
    last = last.assign(kind=last.method.where(last.method.isin(METHODS), between))
    look = dict(hue="kind", style="kind", palette=style.COLOURS, markers=style.MARKERS, s=28, linewidth=0.1, ax=ax)
    sns.scatterplot(last.iloc[::-1], x="ode_error", y=primary, **look)  # CM and Direct CM above the others
    style.scale(ax, "x", last.ode_error)
    style.measured(ax, metrics[primary], last[primary])
    ax.set_xlabel(style.ODE_ERROR.label)
    return style.key(figure)


def convergence(table: pd.DataFrame) -> Figure:
    """Solver error against the number of intervals (notebook 1); `table`: solver, guidance, intervals, error (RMS)."""
    table = table.assign(solver=table.solver.map(SOLVER_NAMES))
    figure, axes = style.panels(table.guidance.nunique(), sharey=True)
    look = dict(hue="solver", style="solver", markers=True, palette="colorblind")
    for ax, (w, part) in zip(axes, table.groupby("guidance")):
        sns.lineplot(part, x="intervals", y="error", ax=ax, **look)
        style.scale(ax, "x", table.intervals, at_values=True)
        style.scale(ax, "y", table.error)
        ax.set(xlabel="intervals N", ylabel="error [RMS]", title=f"distance to the reference, w = {w:g}")
    return style.key(figure)


def loss_curves(losses: np.ndarray, window: int, labels: list[str]) -> Figure:
    """Training `losses` (points, M), means over windows of updates; one line a method (`labels`, (M,)), seeds averaged."""
    figure, [ax] = style.panels(1, 3.0)
    shades = iter(sns.color_palette("viridis", len(set(labels)) + 2))
    for name in dict.fromkeys(labels):
        mean = pd.Series(losses[:, np.array(labels) == name].mean(1), window * np.arange(1, len(losses) + 1))
        ax.plot(mean, color=style.COLOURS.get(name) or next(shades), label=name, lw=1.4)
    style.scale(ax, "y", losses.ravel())
    ax.set(xlabel="update", ylabel="training loss", title="loss, each to its own target")
    return style.key(figure, ncols=6)
