"""Figures of regimes: effects, trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcm.analysis.measured import METHODS
from dcm.analysis.runs import REGIME, SETTING_OF_RUN, Run
from dcm.figures import style


def points(ax: Axes, part: pd.DataFrame, place: np.ndarray, colour: str = "", across: bool = False, size=5.0) -> None:
    """Effects and intervals at `place`, the symbol (and the colour, unless given) by verdict; `across` an axis of rows."""
    for (verdict, single), own in part.assign(place=place).groupby(["verdict", part.seeds == 1]):
        own_colour, marker = style.VERDICTS[verdict]
        bars = [(own.value - own.low).clip(lower=0), (own.high - own.value).clip(lower=0)]
        look: dict[str, Any] = dict(color=colour or own_colour, ms=size, lw=size / 4, mfc="white" if single else None)
        if across:
            ax.errorbar(own.value, own.place, xerr=bars, fmt=marker, **look)
        else:
            ax.errorbar(own.place, own.value, yerr=bars, fmt=marker, **look)
        ax.plot([], [], marker, color=style.GREY if colour else own_colour, label=verdict)
        style.hollow(ax, single)


def effects(claims: pd.DataFrame, runs: Sequence[Run]) -> Figure:
    """C1 and C2 by regime: ratios Direct CM / CM with their intervals; a row a regime, above 1 the Direct CM is worse.

    A training at a constant rate has its end here, and its course in :func:`training`. Draw one study a figure.
    """
    keys = lambda table: pd.MultiIndex.from_frame(table[REGIME])
    course = claims[claims.curve]
    course = course[course["update"] < course.groupby(SETTING_OF_RUN)["update"].transform("max")]
    claims = claims[~keys(claims).isin(keys(course))]
    regimes = claims[[*REGIME, "regime"]].drop_duplicates().reset_index(drop=True)
    place = pd.Series(regimes.index, index=keys(regimes))
    first = regimes.run != regimes.run.shift()
    figure, axes = style.panels(2, 1.2 + 0.25 * len(regimes), sharey=True)
    for ax, title, metric, shift, size in (
        (axes[0], "C1: ODE error", {r.name: "ode_error" for r in runs}, 0.0, 6.0),
        (axes[1], "C2: distance of samples", {r.name: r.primary for r in runs}, -0.15, 6.0),
        (axes[1], "C2: distance of samples", {r.name: r.against_data for r in runs}, 0.2, 3.5),
    ):
        part = claims[claims.metric == claims.run.map(metric)]
        points(ax, part, place[keys(part)].to_numpy() + shift, across=True, size=size)
        ax.axvline(1, color="black", lw=0.8)
        ax.hlines(regimes.index[first][1:] - 0.5, 0, 1, color="#bbbbbb", lw=0.8, transform=ax.get_yaxis_transform())
        style.scale(ax, "x", part.value)
        ax.set(title=title, xlabel="Direct CM / CM", ylim=(len(regimes) - 0.4, -0.6))
    axes[0].set_yticks(regimes.index, regimes.regime.where(~first, regimes.run + ": " + regimes.regime))
    for text, size in (("large: to the teacher's samples", 6.0), ("small: to data", 3.5)):
        axes[1].plot([], [], "o-", color=style.GREY, ms=size, lw=size / 4, label=text)
    return style.key(figure, ncols=3)


def training(runs: Sequence[Run]) -> Figure:
    """ODE error, distance to the teacher's samples and to data against updates, of trainings at a constant rate."""
    parts = [(r, group, p) for r in runs for group, p in r.rows[r.rows.curve].groupby("group")]
    figure, axes = style.panels(2 * len(parts))
    for (run, group, part), left, right in zip(parts, axes[::2], axes[1::2]):
        style.lines(left, part, "update", "ode_error", style.ODE_ERROR)
        for method in METHODS:
            own = part[part.method == method]
            style.line(right, own, "update", run.primary, method)
            style.line(right, own, "update", run.against_data, method, "--", f"{method}, distance to data")
        style.measured(right, run.metrics[run.primary], part[[run.primary, run.against_data]].stack())
        for ax in (left, right):
            style.scale(ax, "x", part["update"])
            ax.set(title=f"{run.name}, learning rate {run.groups[group].lr:g}", xlabel="updates")
    return style.key(figure)
