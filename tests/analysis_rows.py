"""Measured rows and a run of them, as notebooks 3 and 4 would leave them."""

import numpy as np
import pandas as pd

from dcm.analysis.measured import with_final
from dcm.analysis.runs import Results
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters


def rows_of(*settings) -> pd.DataFrame:
    out = []
    for group, update, steps in settings:
        for method, horizon, ode, quality in (("CM", 1, 0.2, 0.3), ("Direct CM", 10, 0.1, 0.6)):
            for seed in range(4):
                wobble = np.exp(0.01 * (-1) ** seed) if horizon > 1 else 1.0  # equal ratios have no verdict
                setting = dict(group=group, solver="ddim", intervals=10, guidance=2.0, horizon=horizon, method=method)
                more = dict(seed=seed, update=update, steps=steps, ode_error=ode * (1 + 0.01 * seed) * wobble)
                distances = dict(swd_teacher=quality * (1 + 0.02 * seed) * wobble, swd_data=quality * wobble)
                out.append(setting | more | distances | dict(nll=1.0 + seed))
    return pd.DataFrame(out)


def run_of(rows: pd.DataFrame, **parameters) -> Results:
    usual = dict(
        study="gmm", run_dir="x", solver="ddim", intervals=10, guidance=[2.0], horizons=["cm", "direct"], seeds=[0],
        updates=80, batch=8, lr=0.1, lr_decay="linear",
    )  # fmt: skip
    make = lambda name: validate(DistillParameters, usual | {"group_name": name} | parameters.get(name, {}))
    groups = {name: make(name) for name in rows.group.unique()}
    return Results("one", "gmm", {"study": "gmm"}, groups, "main", with_final(rows).assign(run="one"))
