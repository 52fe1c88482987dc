"""One look for every figure: legible, colour-blind safe."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns

COLOURS = {"CM": "#D55E00", "Direct CM": "#0072B2", "teacher": "#444444"}  # Okabe & Ito
MARKERS = {"CM": "o", "Direct CM": "s", "teacher": "D"}
METHODS = ["CM", "Direct CM"]
CLASS_COLOURS = [
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#999999",
    "#F0E442",
    "#000000",
    "#882255",
]


def use_style() -> None:
    """Set the look of every figure of the study."""
    sns.set_theme(context="paper", style="ticks", font_scale=1.05)
    mpl.rcParams.update(
        {"figure.dpi": 110, "savefig.dpi": 200, "figure.constrained_layout.use": True, "legend.frameon": False,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
         "lines.linewidth": 1.8, "pdf.fonttype": 42}
    )  # fmt: skip


def scale(ax, which: str, values: pd.Series, log: bool) -> None:
    """Scale the ``x`` or ``y`` axis for `values`.

    Logarithmic for positive values, with ticks at 1, 2, 5 when they span little; symmetric for wide spans.
    """
    values = values[np.isfinite(values)]
    set_scale, axis = (ax.set_xscale, ax.xaxis) if which == "x" else (ax.set_yscale, ax.yaxis)
    if not len(values):
        return
    if log and (values > 0).all():
        set_scale("log")
        if values.max() < 50 * values.min():
            axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_minor_formatter(mpl.ticker.NullFormatter())
    elif not log and values.abs().max() > 100:
        set_scale("symlog", linthresh=1)
