"""One look for every figure: legible where a page shows it 830 pixels wide, colour-blind safe."""

import re
import textwrap

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcm.metrics.metric import Metric

BETWEEN, CHANGED = "horizons between", "changing horizon"
GREY, HOLLOW = "#777777", "hollow: one seed"
# Okabe & Ito
COLOURS = {"CM": "#D55E00", "Direct CM": "#0072B2", "teacher": "#444444", BETWEEN: GREY, CHANGED: "#CC79A7", "total": "#009E73"}
MARKERS = {"CM": "o", "Direct CM": "s", "teacher": "D", BETWEEN: "P", CHANGED: "X", "total": "^"}
CLASS_COLOURS = "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #999999 #F0E442 #000000 #882255".split()
ODE_ERROR = Metric("ODE error [mean squared]", ratio=True)
WIDTH = 7.0  # inches, at 200 dots an inch: text of 9 points is 15 pixels high where 1,400 dots are shown as 830


def use_style() -> None:
    """Set the look of every figure of the study."""
    sns.set_theme(context="paper", style="ticks", font_scale=1.05)
    mpl.rcParams.update(
        {"figure.dpi": 110, "savefig.dpi": 200, "figure.constrained_layout.use": True, "legend.frameon": False,
         "axes.labelsize": 9, "axes.titlesize": 9, "legend.fontsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "lines.linewidth": 1.8, "legend.handlelength": 3, "pdf.fonttype": 42}
    )  # fmt: skip


class LogTicks(mpl.ticker.Locator):
    """Three ticks and more, with labels, on a logarithmic axis, however little or much it spans; thinned to `most`."""

    def __init__(self, most: int = 7):
        self.most = most

    def __call__(self):
        """Ticks between the axis' limits, at powers of ten where these are enough."""
        low, high = sorted(self.axis.get_view_interval())
        powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        each = [np.outer(powers, m).ravel() for m in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))]
        each += [mpl.ticker.MaxNLocator(n, steps=[1, 2, 5, 10]).tick_values(low, high) for n in (5, 7, 9)]
        inside = [ticks[(ticks >= low) & (ticks <= high)] for ticks in each]
        ticks = next((some for some in inside if len(some) >= 3), inside[-1])
        return ticks[:: -(-len(ticks) // self.most)]


def scale(ax: Axes, which: str, values, log: bool = True, at_values: bool = False) -> None:
    """Scale the ``x`` or ``y`` axis for `values`: logarithmic for positive ones, or symmetric for two decades and more.

    `at_values`: with ticks there, where they are few.
    """
    values = pd.Series(values)[np.isfinite(values)]
    set_scale, axis = (ax.set_xscale, ax.xaxis) if which == "x" else (ax.set_yscale, ax.yaxis)
    if log and len(values) and (values > 0).all():
        set_scale("log")
        axis.set_major_locator(LogTicks())
        axis.set_minor_formatter(mpl.ticker.NullFormatter())
    elif not log and not at_values and values.abs().max() > 100 * max(1, values.abs().min()):
        set_scale("symlog", linthresh=1)
    axis.set_major_formatter("{x:g}")
    if at_values and 2 <= values.nunique() <= 6:
        place, ticks = np.log if log else np.asarray, [values.max()]
        wide = lambda value: 0.014 * (len(f"{value:g}") + 1) * (place(values.max()) - place(values.min()))  # half a label
        for value in sorted(set(values), reverse=True):
            if place(ticks[-1]) - place(value) >= wide(ticks[-1]) + wide(value):
                ticks.append(value)
        axis.set_ticks(ticks)
        axis.set_minor_locator(mpl.ticker.NullLocator())


def measured(ax: Axes, metric: Metric, values: pd.Series) -> None:
    """A y axis of a metric's `values`: its first words and unit; above it what it is, and which direction is better."""
    scale(ax, "y", values, metric.ratio)
    unit = "".join(re.findall(r" \[.*?\]", metric.label))
    name = metric.label.replace(unit, "")
    better = f" ({'lower' if metric.lower_is_better else 'higher'}\xa0is\xa0better)" if metric.judged else ""
    ax.set_title(textwrap.fill(name + better, 42, break_on_hyphens=False))
    first = re.split(r" (?:to|against|of|as) | \(", name)[0].split()[:3]
    ax.set_ylabel(textwrap.fill(" ".join(first) + unit, 28, break_on_hyphens=False))


def panels(count: int, height: float = 2.7, columns: int = 2, **options) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a page, with so many `columns` of panels, `height` inches each; and its axes in order.

    `options` are those of ``plt.subplots``. A place that is left free takes the legend, see :func:`key`.
    """
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, min(columns, count), figsize=(WIDTH, height * lines), squeeze=False, **options)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def key(figure: Figure, ncols: int = 4) -> Figure:
    """Give the figure one legend for all its panels, outside of their data, lines before symbols; and return it."""
    handles = {text: h for ax in figure.axes for h, text in zip(*ax.get_legend_handles_labels())}
    late = lambda text: (getattr(handles[text], "get_linestyle", str)() == "None", text == HOLLOW)
    order = sorted(handles, key=late)
    for legend in filter(None, [ax.get_legend() for ax in figure.axes]):
        legend.remove()
    free = [ax for ax in figure.axes if not ax.axison]
    columns = grid.ncols if (grid := figure.axes[0].get_gridspec()) else 1
    inside = len(free) >= columns - 1 > 0  # one place of three is too narrow
    over_two = inside and columns > 2
    where: dict = dict(loc="center left" if over_two else "center") if inside else dict(loc="outside lower center", ncols=ncols)
    (free[0] if inside else figure).legend([handles[text] for text in order], order, **where).set_in_layout(not over_two)
    return figure


def line(ax: Axes, rows: pd.DataFrame, x: str, y: str, of: str, style: str = "-", text: str = "") -> None:
    """Mean over seeds of `y` against `x` in the colour `of` a method, and its standard deviation.

    Points of one seed are hollow. `text` is for the legend, the method's name unless given.
    """
    colour, marker = COLOURS[of], MARKERS[of]
    points = rows.groupby(x).agg(mean=(y, "mean"), seeds=("seed", "nunique"))
    look = dict(color=colour, ls=style, err_style="band" if (points.seeds > 1).all() else "bars")
    sns.lineplot(rows, x=x, y=y, errorbar="sd", ax=ax, legend=False, **look)
    faces = np.where(points.seeds > 1, colour, "white")
    ax.scatter(points.index, points["mean"], s=26, marker=marker, c=faces, edgecolors=colour, zorder=3)
    ax.plot([], [], marker + style, color=colour, label=text or of)
    if (points.seeds == 1).any():
        ax.plot([], [], "o", mfc="white", mec=GREY, label=HOLLOW)
