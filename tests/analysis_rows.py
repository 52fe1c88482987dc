"""Measured rows and a run of them, as notebooks 3 and 4 would leave them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from dcm.analysis import runs
from dcm.analysis.measured import with_final
from dcm.metrics.mixture import MixtureQuality
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.teachers.mixture import GaussianMixtureTeacher


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


def run_of(rows: pd.DataFrame, **parameters) -> runs.Run:
    teacher = GaussianMixtureTeacher.of()
    study = SimpleNamespace(name="gmm", quality=MixtureQuality(teacher), teacher=teacher, exact=True)
    usual = dict(
        study="gmm", run_dir="x", solver="ddim", intervals=10, guidance=[2.0], horizons=["cm", "direct"], seeds=[0],
        updates=80, batch=8, lr=0.1, lr_decay="linear",
    )  # fmt: skip
    make = lambda name: validate(DistillParameters, usual | {"group_name": name} | parameters.get(name, {}))
    groups = {name: make(name) for name in rows.group.unique()}
    constant = [name for name, p in groups.items() if p.lr_decay == "constant"]
    rows = runs.as_regimes(with_final(rows), constant, "one")
    return runs.Run("one", Path("x"), runs.Facts.of(study), rows, groups, {})
