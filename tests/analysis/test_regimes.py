"""Regimes and their verdicts on cases whose answers are known."""

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from analysis_rows import rows_of, run_of

from dcm.analysis import runs, tables
from dcm.support.errors import InputError
from dcm.support.files import csv_text

ROOT = Path(__file__).parents[2]


def test_regimes_are_named_and_judged():
    rows = rows_of(
        ("main", 80, 1), ("main", 80, 2), ("main", 10, 1), ("long", 320, 1), ("long", 20, 1), ("heun", 80, 1)
    )
    long, heun = dict(lr_decay="constant", updates=320), dict(solver="heun")
    run = run_of(rows, long=long, heun=heun)
    claims = run.claims()
    assert set(claims.regime) == {
        "main", "2 steps", "constant lr, 20 updates", "constant lr, 320 updates", "Heun",
    }, "a snapshot of a run whose rate decays is no regime"  # fmt: skip
    c2 = claims[claims.metric == "swd_teacher"]
    assert list(c2.regime) == ["main", "2 steps", "Heun", "constant lr, 20 updates", "constant lr, 320 updates"]
    assert (c2.verdict == "supported").all() and c2.value.to_numpy() == pytest.approx(2)
    c1 = claims[claims.claim == "C1"]
    assert (c1.verdict == "supported").all() and c1.value.to_numpy() == pytest.approx(0.5)
    assert "2 steps" not in set(c1.regime), "fresh noise leads several steps off the solution"
    readable = tables.readable_regimes(claims, [run])["gmm"]
    assert len(readable) == 5 and "supported, ratio 2 [" in readable["C2: sliced Wasserstein distance to teacher"][0]


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="provenance/1_teacher.json does not exist; run notebooks 1 to 4"):
        runs.load_runs(str(tmp_path), torch.device("cpu"))


def test_a_results_folder_that_is_not_whole_is_named(tmp_path):
    (tmp_path / "studies.json").write_text("{}")
    with pytest.raises(InputError, match="is no whole results folder of notebook 7 .*metrics.csv"):
        runs.load_runs(str(tmp_path), torch.device("cpu"))


def test_facts_survive_the_file():
    facts = run_of(rows_of(("main", 80, 1))).facts
    assert runs.FACTS.validate_json(json.dumps({"a": asdict(facts)})) == {"a": facts}
    assert (facts.study, facts.shape, facts.modes, facts.primary) == ("gmm", (2,), 3, "swd_teacher")


def test_where_both_claims_hold_is_counted():
    rows = rows_of(("main", 80, 1), ("main", 80, 2), ("heun", 80, 1))
    rows.loc[(rows.group == "heun") & (rows.method == "Direct CM"), "ode_error"] = 0.9  # there C1 is contradicted
    run = run_of(rows, heun=dict(solver="heun"))
    table = tables.regime_counts(run.claims(), [run]).set_index("measure")
    both = "C1 and C2 both supported"
    assert list(table.loc["ODE error", ["supported", "contradicted", both]]) == [1, 1, ""]
    assert list(table.loc["sliced Wasserstein distance to teacher", ["supported", both]]) == [3, "1"]


def test_the_points_of_a_training_are_in_order():
    rows = rows_of(("main", 80, 1), ("long", 320, 1), ("long", 20, 1), ("long", 100, 1))
    run = run_of(rows, long=dict(lr_decay="constant", updates=320))
    claims = run.claims()
    points = claims[claims.curve]
    assert set(points.group) == {"long"} and list(points[points.claim == "C1"]["update"]) == [20, 100, 320]


def test_a_main_setting_that_is_a_curve_is_called_by_its_updates():
    rows = rows_of(("main", 20, 1), ("main", 100, 1), ("main", 100, 2))
    run = run_of(rows, main=dict(lr_decay="constant", updates=100, snapshots=1))
    claims = run.claims()
    assert list(claims.regime[claims.metric == run.primary]) == ["20 updates", "100 updates", "2 steps"]
    assert list(claims.regime[claims.main & (claims.claim == "C1")]) == ["100 updates"]


def test_the_committed_verdicts_follow_from_the_committed_rows():
    """What was measured elsewhere, judged anew; every digit but the last, which processors round differently."""
    folders = [ROOT / "results" / name for name in ("regimes", "regimes_cifar10")]
    loaded = [run for folder in folders for run in runs.load_runs(str(folder), torch.device("cpu"))]
    committed = pd.read_csv(ROOT / "results/regimes_all/verdicts.csv").drop(columns="group", errors="ignore")
    assert [run.name for run in loaded] == list(committed.run.unique())
    assert all(set(run.groups) == set(run.rows.group) for run in loaded)
    judged = pd.concat([run.claims() for run in loaded], ignore_index=True)
    again = pd.read_csv(StringIO(csv_text(judged)))
    pd.testing.assert_frame_equal(again[committed.columns], committed, rtol=1e-4)
