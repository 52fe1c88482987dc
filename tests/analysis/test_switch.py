"""The switch on measured rows, and on rows whose answers are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from switch_rows import MEASURED, filtered, folder, of_images, stable

from dcm.analysis import predictions, runs, switch
from dcm.analysis.compare import stability
from dcm.analysis.measured import final_one_step
from dcm.horizon import resolve_horizon
from dcm.metrics.metric import ENCODERS
from dcm.support.errors import InputError

PAIRS = {*switch.SWITCH, *switch.GAINS, *switch.EQUAL, *switch.BETWEEN, *switch.PLAIN}


def test_the_pairs_of_the_switch_are_judged(tmp_path):
    [found] = runs.load(folder(tmp_path / "gmm16", stable(MEASURED)))
    assert (found.name, found.study, found.groups["main"].updates) == ("gmm16", "gmm", 600)
    table = switch.effects(found)
    at = table[(table.pair == "D>D / D>CM") & (table.metric == "swd_teacher")].iloc[0]
    last = MEASURED[MEASURED.final].pivot(index="seed", columns="method", values="swd_teacher")
    assert at.value == pytest.approx(np.exp(np.log(last["Direct CM"] / last["direct>cm"]).mean()))
    assert (at.claim, at.verdict, at.role, at.seeds, at.cm) == ("C2", "supported", "teacher", 4, "stable")
    assert set(table.pair) == PAIRS


def test_in_several_steps_distances_alone_are_judged(tmp_path):
    last = MEASURED[MEASURED.final]
    half = np.where(last.method.isin(["Direct CM", "cm>direct"]), 0.5, 1)
    two = last.assign(steps=2, swd_teacher=last.swd_teacher * half)
    [found] = runs.load(folder(tmp_path / "gmm16", stable(pd.concat([MEASURED, two]))))
    table = switch.effects(found)
    few = table[table.pair.isin(switch.FEW_STEPS)]
    assert set(few.pair) == {f"{pair}, 2 steps" for pair in switch.SWITCH} and "error" not in set(few.role)
    value = table[table.metric == "swd_teacher"].set_index("pair").value
    assert all(value[f"{pair}, 2 steps"] == pytest.approx(0.5 * value[pair]) for pair in switch.SWITCH)
    assert set(few.cm) == {"stable"}


def test_both_pairs_start_from_equal_weights(tmp_path):
    [found] = runs.load(folder(tmp_path / "gmm16"))
    before = switch.course(found, switch.settings(found).iloc[0])["before"]
    error = before.pivot(index="seed", columns="method", values="ode_error")
    assert set(before["update"]) == {300}
    for first, second in switch.SWITCH.values():
        assert error[first].to_numpy() == pytest.approx(error[second].to_numpy(), rel=1e-12)


def test_an_unstable_cm_gives_no_verdict(tmp_path):
    """Here it is one: its own ODE error rises from update 450 to 600."""
    [found] = runs.load(folder(tmp_path / "gmm16"))
    assert set(switch.effects(found).verdict) == {"unstable CM"} == set(stability(found.rows))
    short = replace(found, rows=found.rows[found.rows.final])
    assert set(switch.effects(short).verdict) == {"one snapshot"}, "not known to be stable"
    gone = found.rows.assign(ode_error=found.rows.ode_error.where(found.rows["update"] < 600, np.inf))
    assert set(stability(gone)) == {"unstable CM"}


def test_the_accounting_is_exact(tmp_path):
    """Three terms, each from its own columns, sum to the log ratio of the Frechet distances."""
    [found] = runs.load(folder(tmp_path / "gmm16"))
    table, last = switch.accounting(found), final_one_step(found.rows)
    assert list(table.pair) == list(switch.SWITCH) and set(table.seeds) == {4}
    for line in table.itertuples():
        frechet, error, paired = (switch.log_ratios(last, switch.SWITCH[line.pair], c).mean() for c in ("frechet", "ode_error", "paired"))
        assert line.solving + line.space + line.share == pytest.approx(frechet, abs=1e-12) == pytest.approx(line.log_c2)
        assert line.solving == pytest.approx(error) and line.space == pytest.approx(paired - error, abs=1e-12)
        assert abs(line.space) < 1e-4 and line.share > 0.1, "points are judged where they are solved; the share decides"


def test_a_group_with_one_pair_is_judged_by_it_and_one_with_none_is_no_switch(tmp_path):
    [found] = runs.load(folder(tmp_path / "long", MEASURED[MEASURED.method != "cm>direct"]))
    assert set(switch.effects(found).pair) == PAIRS - {"CM>D / CM>CM"} and list(switch.accounting(found).pair) == ["D>D / D>CM"]
    [found] = runs.load(folder(tmp_path / "gmm16", MEASURED[~MEASURED.method.str.contains(">")]))
    assert not len(switch.settings(found)) and not len(switch.accounting(found)) and not len(switch.costs(found))
    table = switch.effects(found)
    assert set(table.pair) == set(switch.PLAIN) and len(switch.plane(table)) == 2


@pytest.mark.parametrize("broken", ["metrics.csv", "provenance.json"])
def test_a_folder_that_is_not_whole_is_named(tmp_path, broken):
    where = folder(tmp_path / "gmm16")
    (Path(where) / broken).unlink()
    with pytest.raises(InputError, match=f"gmm16 is no whole results folder of notebook 5 or 7 .*{broken}"):
        runs.load(where)


@pytest.mark.parametrize(("horizon", "steps"), [("cm", 1), ("direct", 5.5), (3, 2.7), ("direct>cm", 3.25), ("anneal", 3.1)])
def test_the_cost_is_the_mean_of_the_teachers_steps(horizon, steps):
    """Of N = 10: min(h, n) over n; anneal has h = 10, 5, 2, 1 for a quarter each: (5.5 + 4 + 1.9 + 1) / 4."""
    h = resolve_horizon(horizon, 10)
    assert switch.teacher_evaluations(h, "ddim", 10, 1.0) == pytest.approx(steps)
    assert switch.teacher_evaluations(h, "heun", 10, 2.0) == pytest.approx(4 * steps)


def test_the_direct_cm_is_interpolated_where_it_has_spent_as_much(tmp_path):
    """direct>cm costs 6.5 of 11 a sample: the Direct CM has spent that at update 355 of 600, between 300 and 450."""
    [found] = runs.load(folder(tmp_path / "gmm16"))
    rows = switch.at_equal_evaluations(found, ["ode_error"])
    assert set(rows.method) == {second for _, second in switch.EQUAL.values()} and len(rows) == 8
    direct = MEASURED[(MEASURED.method == "Direct CM") & (MEASURED.seed == 1)].set_index("update").ode_error
    share = np.log(600 * 6.5 / 11 / 300) / np.log(450 / 300)
    expected = direct[300] ** (1 - share) * direct[450] ** share
    assert rows[(rows.seed == 1) & rows.method.str.endswith("direct>cm")].ode_error.item() == pytest.approx(expected)


def test_the_plane_has_a_point_a_setting_pair_and_encoder():
    found = of_images(ode_error={"Direct CM": -0.2}, fd_teacher={"Direct CM": 0.4}, fd_self={"Direct CM": 0.1})
    points = switch.plane(switch.effects(found))
    at = points[points.pair == "Direct CM / CM"].set_index("metric")
    assert at.c1.to_numpy() == pytest.approx(np.exp(-0.2), rel=0.05) and at.c2["fd_teacher"] == pytest.approx(np.exp(0.4), rel=0.05)
    assert len(points) == 2 * len(PAIRS)


WORSE, LOWER = {"Direct CM": 0.3, "cm>direct": 0.3}, {"Direct CM": -0.3, "cm>direct": -0.3}
COLUMNS = [column for column, *_ in ENCODERS["cifar10"].values()]


@pytest.mark.parametrize(
    ("error", "distances", "outcome"),
    [
        (LOWER, [WORSE] * 4, "held"), (LOWER, [WORSE] * 3, "held"), (LOWER, [WORSE, LOWER], "failed"), (WORSE, [WORSE] * 4, "failed"),
        (LOWER, [WORSE, {}], "open"),
    ],
)  # fmt: skip
def test_predictions_hold_fail_or_are_open(error, distances, outcome):
    found = of_images(ode_error=error, **dict(zip(COLUMNS, distances)))
    table = predictions.outcomes([found], switch.effects(found)).set_index("prediction")
    assert table.outcome[1] == outcome, table.comparisons[1]
    others = table.outcome[[2, 3, 4, 7, 8, 10]]
    assert set(others) == {"open"}, "of other scales and settings nothing was measured"
    unstable = replace(found, rows=found.rows.assign(ode_error=found.rows.ode_error.where(found.rows.final, 1e-9)))
    again = predictions.outcomes([unstable], switch.effects(unstable)).set_index("prediction")
    assert again.outcome[1] == "open" and "without a stable CM" in again.comparisons[1]


@pytest.mark.parametrize(("errors", "outcome"), [((0.2, -0.2), "held"), ((0.2, 0.2), "failed"), ((0.2, 0.0), "open")])
def test_where_a_distance_is_decided_the_error_after_its_encoder_follows(errors, outcome):
    logs = dict(fd_teacher=0.3, fd_classifier=-0.3, fd_self=0.0, paired=errors[0], paired_classifier=errors[1], paired_self=0.3)
    found = of_images(ode_error=LOWER, **{column: {"Direct CM": log, "cm>direct": log} for column, log in logs.items()})
    tests = list(predictions.Follows("CIFAR-10", 10, 2).tests([found], switch.effects(found)))
    assert len(tests) == 4, "two pairs, and two encoders that decide"
    assert predictions.outcome([tests])[0] == outcome
    assert not list(predictions.Follows("CIFAR-10", 50, 2).tests([found], switch.effects(found)))


def test_a_change_between_settings_is_paired_by_seed():
    """C2 at w = 9 against w = 2, by every encoder."""
    here = of_images(ode_error=LOWER, **dict.fromkeys(COLUMNS, WORSE))
    there = of_images(1, ode_error=LOWER, **dict.fromkeys(COLUMNS, {"Direct CM": 0.1}))
    rows = pd.concat([here.rows, there.rows.assign(guidance=9.0, group="w9")])
    found = replace(here, rows=rows, groups=here.groups | {"w9": here.groups["main"].model_copy(update={"lr": 1e-5})})
    tests = list(predictions.Lower("CIFAR-10", (10, 2), (10, 9)).tests([found], found.rows))
    assert len(tests) == 4 and all(sign * value > 0 and p < 0.05 and stable for sign, value, p, stable in tests)
    wider = replace(found, groups=found.groups | {"w9": here.groups["main"].model_copy(update={"ema": 0.5})})
    assert not list(predictions.Lower("CIFAR-10", (10, 2), (10, 9)).tests([wider], wider.rows)), "it trains otherwise"


@pytest.mark.parametrize(
    ("worse", "change", "outcome", "as_predicted"),
    [
        (0.3, 0.0, "held", "12 of 12"), (0.3, -0.08, "held", "12 of 12"), (0.3, 0.2, "failed", "8 of 12"), (0.3, -0.2, "failed", "8 of 12"),
        (0.0, -0.07, "failed", "8 of 12"),  # as near, but below 1
    ],
)  # fmt: skip
def test_blur_explains_what_goes_with_it(worse, change, outcome, as_predicted):
    found = of_images(ode_error=LOWER, **dict.fromkeys(COLUMNS, {"Direct CM": worse}))
    assert predictions.outcomes([found], switch.effects(found)).comparisons[9] == "not measured here"
    found = filtered(found, change, blurred=0.1)
    table = switch.effects(found)
    at = table[table.role == "teacher"].groupby("pair").value.mean()
    assert at["D>D / D>CM, teacher's spectrum"] == pytest.approx(np.exp(worse + change), rel=0.02)
    assert at["D>D / D>CM, CM blurred"] == pytest.approx(np.exp(worse + 0.1), rel=0.02)
    assert "CM>D / CM>CM, CM blurred" not in at, "of which nothing was measured"
    told = predictions.outcomes([found], table).set_index("prediction").loc[10]
    assert told.outcome == outcome and told.comparisons.startswith(as_predicted)
    unstable = replace(found, rows=found.rows.assign(ode_error=found.rows.ode_error.where(found.rows.final, 1e-9)))
    assert predictions.outcomes([unstable], switch.effects(unstable)).outcome[9] == "open"


def test_gains_are_read_where_they_were_measured(tmp_path):
    where = Path(folder(tmp_path / "gmm16"))
    assert runs.load(str(where))[0].gains is None
    last = MEASURED[MEASURED.final].drop(columns=["ode_error", "final"])
    last.assign(spectrum="teacher").to_csv(where / "gains.csv", index=False)
    [found] = runs.load(str(where))
    assert set(switch.filtered(found).method) == {f"{method} as teacher" for method in last.method}
    assert {*switch.UNBLURRED} <= set(switch.effects(found).pair)
    (where / "gains.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match="is no whole results folder"):
        runs.load(str(where))
