"""Regimes and their verdicts on cases whose answers are known, and what notebook 7 says of them."""

from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_rows import rows_of, run_of

from dcm.analysis import runs
from dcm.analysis.switch import plane
from dcm.report.switch import Regimes
from dcm.support.errors import InputError

ROOT = Path(__file__).parents[2]


def test_regimes_are_named_and_judged():
    rows = rows_of(("main", 80, 1), ("main", 80, 2), ("main", 10, 1), ("long", 320, 1), ("long", 20, 1), ("heun", 80, 1))
    rows = rows.assign(solver=rows.solver.where(rows.group != "heun", "heun"))
    claims = runs.regimes(run_of(rows, long=dict(lr_decay="constant", updates=320), heun=dict(solver="heun")))
    c2 = claims[claims.metric == "swd_teacher"]
    assert list(c2.regime) == [
        "main", "steps 2", "solver heun", "lr_decay constant, update 20", "lr_decay constant, update 320",
    ], "a snapshot of a run whose rate decays is no regime"  # fmt: skip
    assert (c2.verdict == "supported").all() and c2.value.to_numpy() == pytest.approx(2)
    c1 = claims[claims.claim == "C1"]
    assert (c1.verdict == "supported").all() and c1.value.to_numpy() == pytest.approx(0.5)
    assert "steps 2" not in set(c1.regime), "fresh noise leads several steps off the solution"
    assert len(plane(claims)) == 4, "which has no place in the plane"
    assert set(claims.role) == {"error", "teacher", "data"}


def test_a_cm_whose_error_rises_up_to_there_gives_no_verdict():
    rows = rows_of(("main", 80, 1), ("long", 20, 1), ("long", 100, 1), ("long", 320, 1))
    rises = np.select([rows["update"] == 100, rows["update"] == 320], [2 + 0.01 * rows.seed, 1.0], 1.5)
    run = run_of(rows.assign(ode_error=rises * rows.ode_error), long=dict(lr_decay="constant", updates=320))
    claims = runs.regimes(run)
    assert list(claims.cm[claims.metric == "swd_data"]) == ["one snapshot", "one snapshot", "unstable CM", "stable"]
    assert set(claims.verdict[claims.cm == "unstable CM"]) == {"unstable CM"}
    assert set(claims.verdict[claims.cm != "unstable CM"]) == {"supported"}
    found = Regimes([run], claims)
    assert list(found.table().CM) == ["one snapshot", "one snapshot", "unstable CM", "stable"]
    [said] = found.counts()
    assert "4 regimes. ODE error: 3 supported, 0 contradicted, 0 inconclusive, 1 without a stable CM" in said


def test_where_both_claims_hold_is_counted():
    rows = rows_of(("main", 80, 1), ("main", 80, 2), ("heun", 80, 1))
    rows.loc[(rows.group == "heun") & (rows.method == "Direct CM"), "ode_error"] = 0.9  # there C1 is contradicted
    run = run_of(rows, heun=dict(solver="heun"))
    [said] = Regimes([run], runs.regimes(run)).counts()
    assert said.startswith("**gmm**, 3 regimes. ODE error: 1 supported, 1 contradicted, 0 inconclusive; distance to teacher")
    assert "sliced Wasserstein: 3 supported, 0 contradicted, 0 inconclusive" in said and said.endswith(": 1.")


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="provenance/1_teacher.json does not exist; run notebooks 1 to 4"):
        runs.load(str(tmp_path))


def test_a_results_folder_that_is_not_whole_is_named(tmp_path):
    (tmp_path / "studies.json").write_text("{}")
    with pytest.raises(InputError, match="is no whole results folder of notebook 5 or 7 .*metrics.csv"):
        runs.load(str(tmp_path))


def test_the_committed_verdicts_follow_from_the_committed_rows():
    """What was measured elsewhere, judged anew; every digit but the last, which processors round differently."""
    found = Regimes.load([str(ROOT / "results" / name) for name in ("regimes", "regimes_cifar10")])
    committed = pd.read_csv(ROOT / "results/regimes_all/verdicts.csv")
    assert [run.name for run in found.runs] == list(committed.run.unique())
    again = pd.read_csv(StringIO(found.claims.to_csv(index=False, float_format="%.6g")))
    pd.testing.assert_frame_equal(again[committed.columns], committed, rtol=1e-4)
