"""Regimes: measured rows, one setting, moment and number of sampling steps each."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dcm.analysis.measured import SETTING

SETTING_OF_RUN = ["run", *SETTING]
REGIME = [*SETTING_OF_RUN, "update", "steps"]
DATA_METRIC = {"swd_teacher": "swd_data", "fd_teacher": "fd_real"}  # the primary metric's sibling: against data
# The same two, by further encoders.
FURTHER = {f"fd_{name}": f"fd_{name}_real" for name in ("classifier", "pixels", "self")} | {"fid_teacher": "fid_real"}


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
