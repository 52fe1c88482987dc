"""Measured rows of the switch on a 16-D mixture (four seeds, 600 updates), and rows whose answers are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dcm.analysis.measured import with_final
from dcm.analysis.runs import Results
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters

HORIZONS = ["cm", "direct", "direct>cm", "cm>direct", "anneal"]
GROUP = dict(
    study="gmm", run_dir="x", group_name="main", solver="ddim", intervals=10, guidance=[2.0], horizons=HORIZONS, seeds=[0, 1, 2, 3],
    updates=600, batch=128,
)  # fmt: skip
MEASURED = pd.read_csv(Path(__file__).with_name("switch_rows.csv"))


def folder(where: Path, rows: pd.DataFrame = MEASURED) -> str:
    """A results folder of notebook 5."""
    where.mkdir(exist_ok=True)
    rows.to_csv(where / "metrics.csv", index=False)
    ran = {"1_teacher": {"study": "gmm", "dimension": 16, "modes": 12}, "2_distill-main": GROUP, "5_figures": {"main_group": "main"}}
    (where / "provenance.json").write_text(json.dumps({"notebooks": {k: {"parameters": p} for k, p in ran.items()}}))
    return str(where)


def stable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose CM's error was higher before the end."""
    before = (rows.method == "CM") & (rows["update"] == 450)
    return rows.assign(ode_error=rows.ode_error.where(~before, 2 * rows.ode_error))


def of_images(draw: int = 0, **logs) -> Results:
    """A setting of CIFAR-10: by column the log of every method's value against the CM's, with a spread over seeds."""
    out, rng = [], np.random.default_rng(draw)
    for method, seed, update in ((m, s, u) for m in sorted({"CM", "Direct CM", "direct>cm", "cm>direct", "anneal"}) for s in range(4) for u in (300, 600)):
        wobble = rng.normal(0, 0.01)
        setting = dict(group="main", solver="ddim", intervals=10, guidance=2.0, method=method, seed=seed, update=update, steps=1)
        values = {name: np.exp(log.get(method, 0) + wobble + (update < 600)) for name, log in logs.items()}
        out.append(setting | values | {"run": "cifar10"})
    ran = validate(DistillParameters, GROUP | {"study": "cifar10"})
    return Results("cifar10", "cifar10", {"study": "cifar10"}, {"main": ran}, "main", with_final(pd.DataFrame(out)))


def filtered(found: Results, teacher: float = 0.0, blurred: float = 0.0) -> Results:
    """With rows as of workflow/gains.py: filters change log ratios D>D / D>CM of distances by as much as is named, in the mean."""
    last = found.rows[found.rows.final]
    spectra = [("teacher", "Direct CM", teacher), ("teacher", "direct>cm", 0.0), ("Direct CM", "direct>cm", -blurred)]
    columns = [c for c in last if c.startswith(("fd_", "fid_"))]
    each, sign = [], {"direct>cm": -1}
    for spectrum, method, log in spectra:
        rows = last[last.method == method]
        times = np.exp(log + sign.get(method, 1) * 0.002 * (-1.0) ** rows.seed)
        each.append(rows.assign(spectrum=spectrum, **{c: rows[c] * times for c in columns}))
    return replace(found, gains=pd.concat(each).drop(columns=["run", "final", "ode_error"]))
