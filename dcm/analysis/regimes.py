"""Regimes: measured rows, one setting or moment each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dcm.analysis.compare import SETTING

REGIME = ["run", *SETTING]
ROW_KEY = [*SETTING, "horizon", "method", "seed", "update", "steps"]
DATA_METRIC = {"swd_teacher": "swd_data", "fd_teacher": "fd_real"}  # the primary metric's sibling: against data
# The same two, by further encoders.
FURTHER = {"fd_classifier": "fd_classifier_real", "fd_pixels": "fd_pixels_real", "fid_teacher": "fid_real"}


def parts_of(regime: str) -> tuple[str, str, str]:
    """(group, update of a snapshot, sampling steps) of a name that :func:`as_regimes` gave; empty where they are usual."""
    base, _, moment = regime.partition("@")
    base, _, steps = base.partition("/")
    return base, moment, steps


def log_ratios(rows: pd.DataFrame, column: str, by: Sequence[str] = tuple(REGIME)) -> pd.Series:
    """log(Direct CM / CM) of a positive `column`, paired by seed and averaged over seeds, indexed by regime."""
    return paired(rows, column, by, lambda direct, cm: np.log(direct / cm))


def differences(rows: pd.DataFrame, column: str, by: Sequence[str] = tuple(REGIME)) -> pd.Series:
    """Direct CM - CM of a `column`, as :func:`log_ratios`."""
    return paired(rows, column, by, lambda direct, cm: direct - cm)


def paired(rows: pd.DataFrame, column: str, by: Sequence[str], compare) -> pd.Series:
    """Mean over seeds of ``compare(Direct CM, CM)`` of a `column`, indexed by setting."""
    wide = rows[rows.method.isin(["CM", "Direct CM"])].pivot(index=[*by, "seed"], columns="method", values=column)
    return compare(wide["Direct CM"], wide["CM"]).groupby(level=list(by)).mean().rename(column)
