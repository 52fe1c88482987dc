"""Regimes: measured rows, one setting, moment and number of sampling steps each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dcm.analysis.measured import METHODS, SETTING

SETTING_OF_RUN = ["run", *SETTING]
REGIME = [*SETTING_OF_RUN, "update", "steps"]
DATA_METRIC = {"swd_teacher": "swd_data", "fd_teacher": "fd_real"}  # the primary metric's sibling: against data
# The same two, by further encoders.
FURTHER = {"fd_classifier": "fd_classifier_real", "fd_pixels": "fd_pixels_real", "fid_teacher": "fid_real"}


def as_regimes(rows: pd.DataFrame, constant: Sequence[str], run: str) -> pd.DataFrame:
    """Those of a run's measured rows that are regimes, with columns ``run`` and ``curve``.

    They are the ends of trainings; the ends sampled in several steps, without an ODE error, since fresh noise leads them
    off the solution they would be compared with; and, in one step, the snapshots of groups whose learning rate is
    `constant`. ``curve`` marks those and their end: the points of one curve.
    """
    several = rows.groupby("group")["update"].transform("nunique") > 1
    rows = rows.assign(run=run, curve=(rows.steps == 1) & rows.group.isin(constant) & several)
    rows = rows[rows.final | rows.curve]
    return rows.assign(ode_error=rows.ode_error.where(rows.steps == 1))


def paired(rows: pd.DataFrame, column: str, by: Sequence[str], compare) -> pd.Series:
    """Mean over seeds of ``compare(Direct CM, CM)`` of a `column`, indexed by setting."""
    wide = rows[rows.method.isin(METHODS)].pivot(index=[*by, "seed"], columns="method", values=column)
    return compare(wide["Direct CM"], wide["CM"]).groupby(level=list(by)).mean().rename(column)


def log_ratios(rows: pd.DataFrame, column: str, by: Sequence[str] = tuple(REGIME)) -> pd.Series:
    """log(Direct CM / CM) of a positive `column`, paired by seed and averaged over seeds, indexed by regime."""
    return paired(rows, column, by, lambda direct, cm: np.log(direct / cm))


def differences(rows: pd.DataFrame, column: str, by: Sequence[str] = tuple(REGIME)) -> pd.Series:
    """Direct CM - CM of a `column`, as :func:`log_ratios`."""
    return paired(rows, column, by, lambda direct, cm: direct - cm)


def supporting(claims: pd.DataFrame) -> pd.DataFrame:
    """Regimes that support C2 by at least one of two distances, to teacher and to data, and are contradicted by neither.

    A table of the columns of :data:`REGIME` and ``regime``, in the order of `claims`.
    """
    own = claims[claims.role.isin(["teacher", "data"])]
    said = own.groupby([*REGIME, "regime"], sort=False).verdict.agg(set).reset_index()
    return said[[("supported" in v) and ("contradicted" not in v) for v in said.verdict]].drop(columns="verdict")
