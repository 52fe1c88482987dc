"""The one table of measured students."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from dcm.parameters.kinds import Name
from dcm.support.errors import InputError, why

SETTING = ["group", "solver", "intervals", "guidance"]
NAMES = TypeAdapter(list[Name])  # of groups; they name files
METHODS = ["CM", "Direct CM"]
BETWEEN = r"h = \d+"  # how :func:`dcm.horizon.method_name` calls a constant horizon between them
ROW_KEY = [*SETTING, "horizon", "method", "seed", "update", "steps"]


def read(run_dir: Path, name: str) -> pd.DataFrame:
    """A csv file of notebooks 3 and 4; raises :class:`InputError` where it is not there or is empty."""
    try:
        table = pd.read_csv(run_dir / f"{name}.csv", dtype={"group": str})
        NAMES.validate_python(list(table.get("group", [])))
        return table
    except FileNotFoundError:
        raise InputError(f"{run_dir / name}.csv does not exist; run notebooks 1 to 4 with this run_dir first.") from None
    except ValueError as error:
        raise InputError(f"{run_dir / name}.csv is damaged ({why(error)}); run notebooks 3 and 4 again.") from None


def measured(run_dir: Path, metrics: Iterable[str]) -> pd.DataFrame:
    """One row a student, snapshot and number of sampling steps: ODE error, quality `metrics`, ``final`` (see below).

    A metric that is newer than the rows is NaN. Raises :class:`InputError` where notebooks 3 and 4 do not fit together.
    """
    ode, quality = read(run_dir, "ode_error"), read(run_dir, "quality")
    rows = ode.merge(quality, on=ROW_KEY, how="inner", validate="one_to_one")
    if len(rows) < len(ode):
        again = "run both again with the same parameters"
        raise InputError(f"notebooks 3 and 4 measured different students in {run_dir}; {again}.")
    return with_final(with_columns(rows, metrics)).sort_values(ROW_KEY, kind="stable").reset_index(drop=True)


def with_columns(table: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """`table` with a column for each of `metrics`, NaN where it was not measured."""
    return table.assign(**{name: np.nan for name in metrics if name not in table})


def with_final(rows: pd.DataFrame, by: Sequence[str] = ("group",)) -> pd.DataFrame:
    """`rows` with ``final``: whether they are from the end of their group's training."""
    return rows.assign(final=rows["update"] == rows.groupby(list(by))["update"].transform("max"))


def constant(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of students whose horizon stood while they trained; ``horizon`` of the others is that of their end alone."""
    return rows[rows.method.isin(METHODS) | rows.method.str.fullmatch(BETWEEN)]


def final_one_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows at the end of training, sampled in one step."""
    return rows[(rows.steps == 1) & rows.final]
