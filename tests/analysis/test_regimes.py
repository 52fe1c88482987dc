"""Notebook 6's analysis on cases whose answers are known."""

import json
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from dcm.analysis import explanations, regime_verdicts, regimes, runs
from dcm.analysis import slopes as slopes_module
from dcm.analysis.compare import Effect
from dcm.analysis.explanations import Prediction, predictions, survival
from dcm.analysis.regimes import REGIME
from dcm.analysis.slopes import slopes
from dcm.consistency import ConsistencyFunction
from dcm.evaluation.flow_maps import Maps, Steepness, averaging_index, derivatives, probe_directions
from dcm.figures import style
from dcm.horizon import Group
from dcm.metrics.metric import Metric
from dcm.parameters.check import validate
from dcm.parameters.regimes import RegimesConfig
from dcm.report import provenance
from dcm.report.regimes import RegimesReport
from dcm.support.errors import InputError
from dcm.support.files import csv_text
from dcm.teachers.mixture import GaussianMixtureTeacher
from dcm.training.saved import DistilledGroup

ROOT = Path(__file__).parents[2]


def test_steepness_of_linear_maps():
    """Of x -> A x the Lipschitz constant is A's largest singular value, the gain its Frobenius norm over sqrt(D)."""
    A = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # three students
    x = torch.zeros(4, 5, dtype=torch.float64)
    apply = lambda y: torch.einsum("mij,bj->mbi", A, y)
    found = Steepness.of(derivatives(apply, x, probe_directions((5,), 8).double()), 1)
    assert found.lipschitz.shape == (3, 4)
    assert torch.allclose(found.lipschitz, torch.linalg.matrix_norm(A, 2)[:, None].expand(3, 4))
    assert torch.allclose(found.gain, torch.linalg.matrix_norm(A)[:, None].expand(3, 4) / 5**0.5)
    few = Steepness.of(derivatives(apply, x, probe_directions((5,), 3).double()), 1)
    assert (few.lipschitz < found.lipschitz).all() and (few.lipschitz > 0).all()


def test_directions_are_orthonormal():
    d = probe_directions((2, 3, 3), 6).flatten(1)
    assert d.shape == (6, 18) and torch.allclose(d @ d.T, torch.eye(6), atol=1e-6)


class Shift(torch.nn.Module):
    """Students whose answer at the noisiest time is known: the network's output is v = shift of each member."""

    def __init__(self, shifts):
        super().__init__()
        self.size, self.shifts = len(shifts), torch.nn.Parameter(torch.tensor(shifts))

    def forward(self, x, t, condition, members=slice(None)):
        return self.shifts[members][:, None, None] * x


def gaussian(spread=0.5):
    """One Gaussian N(1, spread^2) in 2-D, whose ODE map is linear with a known slope."""
    teacher = GaussianMixtureTeacher(np.ones((1, 2)), spread**2 * np.eye(2)[None], np.zeros(1, int), np.ones(1))
    f = ConsistencyFunction(teacher.schedule)
    study = SimpleNamespace(teacher=teacher, data=teacher, f=f, chunk=1 << 16, exact=True, is_image=False)
    alpha = teacher.schedule.alpha(torch.tensor([1000]), torch.ones(1, 1))
    sigma = teacher.schedule.sigma(torch.tensor([1000]), torch.ones(1, 1))
    return study, float(spread / (alpha**2 * spread**2 + sigma**2).sqrt()), float(alpha), float(sigma)


def maps_of(study, intervals=250, shifts=(0.0, 0.5)):
    group = Group("ddim", intervals, (1.0,), (1, intervals), (0,))
    distilled = DistilledGroup("main", group, [1], {}, Path("x"), {})
    return Maps(study, distilled, Shift(list(shifts)), 1.0, points=64, probes=8)


def test_maps_of_one_gaussian():
    """Teacher: slope spread / sqrt(alpha^2 spread^2 + sigma^2). Students: alpha - sigma shift, up to the boundary scaling."""
    study, slope, alpha, sigma = gaussian()
    rows = pd.DataFrame(maps_of(study).by_time())
    last = rows[rows.t == 1000].set_index("horizon")
    assert last.gain_teacher.to_numpy() == pytest.approx(slope, rel=0.02)
    assert [last.gain_student[h] for h in (1, 250)] == pytest.approx([alpha, abs(alpha - sigma * 0.5)], rel=0.01)
    assert last.gain_target[250] == pytest.approx(last.gain_teacher[250], rel=1e-5)  # the Direct CM's target is the map
    assert last.gain_target[1] != pytest.approx(last.gain_teacher[1], rel=0.1)
    assert sorted(rows.t.unique()) == [248, 500, 752, 1000] and (last.lipschitz_1 <= last.lipschitz_4).all()
    assert last[["error_1", "error_4"]].to_numpy().min() > 0


def test_what_is_measured_from_noise():
    """A student that is the ODE map itself errs nowhere, and its steps along the trajectory add up to its error."""
    study, _, _, _ = gaussian()
    maps = maps_of(study, intervals=10)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    condition = torch.zeros(64, dtype=torch.long)
    solution = maps.solve(noise, 10, condition).x
    evaluation = SimpleNamespace(
        noise=noise, condition=condition, teacher_samples=lambda *_: solution,
        student_samples=lambda *_: maps.answers(noise, 10, condition),
    )  # fmt: skip
    rows = pd.DataFrame(maps.from_noise(evaluation, lambda x, c: solution + 1)).set_index("horizon")
    direct = (maps.answers(noise, 10, condition)[1] - solution).square().mean()
    assert rows.error_prior[10] == pytest.approx(float(direct), rel=1e-5)
    assert rows.solver_true[1] == pytest.approx(1.0, rel=1e-6) and (rows.error_true > 0).all()
    assert (rows.accumulation == rows.error_prior / rows.residual).all() and (rows.accumulation <= 10).all()
    t = torch.full((2, 64), 1000)
    exact = maps.study.f.denoise(maps.students(noise.expand(2, -1, -1), t, condition.expand(2, -1)), noise.expand(2, -1, -1), t)  # fmt: skip
    assert torch.allclose(maps.answers(noise, 10, condition), exact, atol=1e-3)


def test_averaging_index():
    g = torch.Generator().manual_seed(0)
    coin = (torch.randint(0, 2, (2000, 1), generator=g) * 2 - 1).float()
    c = torch.zeros(2000, dtype=torch.long)
    assert averaging_index(torch.zeros_like(coin), coin, c) == pytest.approx(1, abs=0.01)  # the mean of both sides
    assert averaging_index(coin + 0.3, coin, c) == pytest.approx(0, abs=1e-4)  # misplaced, as wide as before
    assert averaging_index(1.5 * coin, coin, c) == pytest.approx(-5, abs=0.05)  # (1 - 2.25) / 0.25


def paradox(within: float, between: float) -> pd.DataFrame:
    """Groups whose means rise with slope `between`, each with slope `within`."""
    rng, parts = np.random.default_rng(0), []
    for g in range(8):
        d = np.linspace(-0.4, 0.4, 5)
        y = between * g + within * d + 0.01 * rng.standard_normal(5)
        parts.append(pd.DataFrame({"setting": g, "x": g + d, "y": y}))
    return pd.concat(parts)


def test_slopes_of_simpsons_paradox():
    found = slopes(paradox(-1, 2), "x", "y", ["setting"], 500, 0.95)
    assert found.within.value == pytest.approx(-1, abs=0.05) and found.within.high < 0
    assert found.between.value == pytest.approx(2, abs=0.02) and 1.5 < found.pooled.value < 2 and found.pooled.low > 0
    assert found.rank_pooled.value > 0.9 and found.rank_within.value == -1
    assert (found.by_group.slope < 0).all() and len(found.by_group) == 8
    assert "Simpson" in RegimesReport._paradox(found)


def test_slopes_without_a_paradox():
    found = slopes(paradox(2, 2), "x", "y", ["setting"], 500, 0.95)
    assert [found.pooled.value, found.within.value, found.between.value] == pytest.approx([2, 2, 2], abs=0.05)
    assert "same within" in RegimesReport._paradox(found)
    with pytest.raises(InputError, match="no group by setting has three runs"):
        slopes(paradox(1, 1).groupby("setting").head(2), "x", "y", ["setting"], 500, 0.95)


def test_the_gap_at_equal_error():
    """y = 1 + 2 x + 0.3 [Direct CM], where the Direct CM has the smaller x: its y is smaller, and the gap above 0."""
    rng, parts = np.random.default_rng(0), []
    for g in range(8):
        for method, shift in (("CM", 1.0), ("Direct CM", 0.0)):
            x = g + shift + 0.3 * rng.standard_normal(5)
            y = 1 + 2 * x + 0.3 * (method == "Direct CM") + 0.01 * rng.standard_normal(5)
            parts.append(pd.DataFrame({"setting": g, "method": method, "x": x, "y": y}))
    rows = pd.concat(parts)
    assert rows[rows.method == "CM"].y.mean() > rows[rows.method == "Direct CM"].y.mean()
    gap = slopes_module.at_equal_error(rows, ["setting"], 500, 0.95)
    assert gap.value == pytest.approx(0.3, abs=0.01) and 0.28 < gap.low < gap.high < 0.32 and gap.n == 8


def table(**columns) -> pd.DataFrame:
    """Mechanisms of 12 regimes; the effect of C2 is their number, and half of them support it."""
    n = np.arange(12.0)
    names = [
        "averaging_direct",
        "averaging",
        "target",
        "roughness",
        "start",
        "own",
        "true",
        "solver_share",
        "steep_direct",
    ]
    base = pd.DataFrame({name: 1.0 + 0.01 * np.sin(7 * n) for name in names})
    return base.assign(c2=n - 5.5, c2_data=(n - 5.5) ** 3, holds=n > 5.5, target=-1 - 0.01 * np.sin(n)).assign(
        **columns
    )


def test_an_explanation_survives_where_every_prediction_holds():
    n = np.arange(12.0)
    made = predictions(table(averaging=0.1 + n, roughness=5 - n, solver_share=np.sin(9 * n)), 500, 0.95)
    fates = survival(made)
    assert fates[explanations.AVERAGING] == "survives"
    assert fates[explanations.SMOOTHING] == "refuted", "the CM is the rougher one, and more so where C2 is stronger"
    assert fates[explanations.DISCRETISING] == "undecided"
    driven = [p for p in made if p.statement == "where it averages more than the CM, C2 is stronger"]
    assert driven[0].estimate.value == pytest.approx(1) and driven[0].estimate.n == 12


def test_an_explanation_without_a_regime_is_undecided():
    made = predictions(table(holds=False, averaging=np.sin(9 * np.arange(12.0))), 500, 0.95)
    assert survival(made)[explanations.AVERAGING] == "undecided"
    assert [p.estimate.n for p in made if p.statement.startswith("the Direct CM errs more")] == [0]
    assert Prediction("x", "y", 1, "rho", Effect(0.5, 0.1, 0.9, 2)).outcome == "undecided", "two regimes are too few"


def rows_of(*settings) -> pd.DataFrame:
    out = []
    for group, update, steps in settings:
        for method, horizon, ode, quality in (("CM", 1, 0.2, 0.3), ("Direct CM", 10, 0.1, 0.6)):
            for seed in range(4):
                setting = dict(group=group, solver="ddim", intervals=10, guidance=2.0, horizon=horizon, method=method)
                more = dict(seed=seed, update=update, steps=steps, ode_error=ode * (1 + 0.01 * seed))
                out.append(
                    setting | more | dict(swd_teacher=quality * (1 + 0.02 * seed), swd_data=quality, nll=1.0 + seed)
                )
    return pd.DataFrame(out)


def run_of(rows: pd.DataFrame, **parameters) -> runs.Run:
    from dcm.metrics.mixture import MixtureQuality

    teacher = GaussianMixtureTeacher.of()
    study = SimpleNamespace(name="gmm", quality=MixtureQuality(teacher), teacher=teacher, exact=True)
    usual = dict(solver="ddim", intervals=10, lr=0.1, lr_decay="linear", updates=80, loss="l2", lora_rank=0, width=64)
    updates = {name: [int(u) for u in sorted(set(part))] for name, part in rows.groupby("group", sort=False)["update"]}
    group = Group("ddim", 10, (2.0,), (1, 10), (0,))
    groups = {name: runs.Trained(group, u, usual | parameters.get(name, {})) for name, u in updates.items()}
    facts = runs.Facts.of(study)
    return runs.Run("one", Path("x"), facts, runs.as_regimes(rows, groups, "one"), groups, {}, study)


def test_regimes_are_named_and_judged():
    rows = rows_of(
        ("main", 80, 1), ("main", 80, 2), ("main", 10, 1), ("long", 320, 1), ("long", 20, 1), ("heun", 80, 1)
    )
    long, heun = dict(lr_decay="constant", updates=320), dict(solver="heun")
    run = run_of(rows, long=long, heun=heun)
    claims = regime_verdicts.verdict_table(run, 200, 0.95)
    assert set(claims.regime) == {
        "main", "2 steps", "constant lr, 20 updates", "constant lr, 320 updates", "Heun",
    }, "a snapshot of a run whose rate decays is no regime"  # fmt: skip
    c2 = claims[claims.metric == "swd_teacher"]
    assert list(c2.regime) == ["main", "2 steps", "Heun", "constant lr, 20 updates", "constant lr, 320 updates"]
    assert (c2.verdict == "supported").all() and c2.value.to_numpy() == pytest.approx(2)
    c1 = claims[claims.claim == "C1"]
    assert (c1.verdict == "supported").all() and c1.value.to_numpy() == pytest.approx(0.5)
    assert "2 steps" not in set(c1.regime), "fresh noise leads several steps off the solution"
    assert list(regime_verdicts.supporting(claims, run).regime) == list(c2.regime)
    mixed = claims.set_index(["regime", "metric"]).copy()
    mixed.loc[("Heun", "swd_data"), "verdict"] = "contradicted"
    mixed.loc[("main", "swd_data"), "verdict"] = mixed.loc[("2 steps", "swd_teacher"), "verdict"] = "inconclusive"
    mixed.loc[("2 steps", "swd_data"), "verdict"] = "inconclusive"
    left = list(regime_verdicts.supporting(mixed.reset_index(), run).regime)
    assert left == ["main", "constant lr, 20 updates", "constant lr, 320 updates"], "one says so, and none the opposite"
    best = regime_verdicts.strongest(c2.assign(value=np.arange(len(c2)) + 0.5), ["swd_teacher"])
    assert (best["for"].value, best["against"].value) == (len(c2) - 0.5, 0.5)
    readable = regime_verdicts.readable(claims, [run])["gmm"]
    assert len(readable) == 5 and "supported, ratio 2 [" in readable["C2: sliced Wasserstein distance to teacher"][0]


def test_effects_are_paired_logarithms():
    rows = rows_of(("main", 80, 1)).assign(run="one")
    assert regimes.log_ratios(rows, "swd_teacher").to_numpy() == pytest.approx([np.log(2)])
    assert regimes.differences(rows, "swd_data").to_numpy() == pytest.approx([0.3])
    assert regimes.log_ratios(rows, "ode_error").index.names == REGIME


@pytest.mark.parametrize("name", ["regimes", "regimes_cifar10"])
def test_the_configurations_are_possible(name):
    config = validate(RegimesConfig, yaml.safe_load((ROOT / f"workflow/config/{name}.yaml").read_text()))
    for study in config.studies:
        groups = config.study(study)["groups"]
        assert "main" in groups
        assert name != "regimes" or all(len(g["seeds"]) >= 5 for g in groups.values())
    assert config.notebook()["runs"] == [f"{config.run_dir}/{study}" for study in config.studies]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"studies": {}}, "studies = {} is not possible"),
        (
            {"studies": {"a": {"study": "gmm", "run_dir": "x"}}},
            "in study a: run_dir = 'x' is given once for all studies; allowed: beside studies",
        ),
        ({"studies": {"a": {"study": "gmm"}}}, "in study a: teacher is missing"),
        ({"figures": {"probes": 1}}, "in figures: probes = 1 is not possible; allowed: a whole number, at least 2"),
    ],
)
def test_an_impossible_configuration_is_refused(change, message):
    values = yaml.safe_load((ROOT / "workflow/config/regimes.yaml").read_text())
    with pytest.raises(InputError, match=message):
        validate(RegimesConfig, values | change)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="provenance/1_teacher.json does not exist; run notebooks 1 to 4"):
        runs.load_runs(str(tmp_path), torch.device("cpu"))


def test_a_results_folder_that_is_not_whole_is_named(tmp_path):
    (tmp_path / "studies.json").write_text("{}")
    with pytest.raises(InputError, match="is no whole results folder of notebook 6: metrics.csv is missing"):
        runs.load_runs(str(tmp_path), torch.device("cpu"))


def test_facts_survive_the_file():
    facts = run_of(rows_of(("main", 80, 1))).facts
    assert runs.Facts.read(json.loads(json.dumps(asdict(facts)))) == facts
    assert (facts.study, facts.shape, facts.modes, facts.primary) == ("gmm", (2,), 3, "swd_teacher")


def test_where_both_claims_hold_is_counted():
    rows = rows_of(("main", 80, 1), ("main", 80, 2), ("heun", 80, 1))
    rows.loc[(rows.group == "heun") & (rows.method == "Direct CM"), "ode_error"] = 0.9  # there C1 is contradicted
    run = run_of(rows, heun=dict(solver="heun"))
    table = regime_verdicts.counts(regime_verdicts.verdict_table(run, 200, 0.95), [run]).set_index("measure")
    both = "C1 and C2 both supported"
    assert list(table.loc["ODE error", ["supported", "contradicted", both]]) == [1, 1, ""]
    assert list(table.loc["sliced Wasserstein distance to teacher", ["supported", both]]) == [3, "1"]


def test_a_further_encoder_is_asked():
    """By pixels both distances say that the Direct CM is worse in one regime, and in the other one of them does."""
    rows = rows_of(("main", 80, 1), ("heun", 80, 1)).rename(
        columns={"swd_teacher": "fd_teacher", "swd_data": "fd_real"}
    )
    direct = rows.method == "Direct CM"
    rows = rows.assign(
        fd_pixels=1 + 2.0 * direct, fd_pixels_real=np.where(direct & (rows.group == "heun"), 0.5, 1 + direct)
    )
    metrics = {k: Metric(k, ratio=True) for k in ("fd_teacher", "fd_real", "fd_pixels", "fd_pixels_real")}
    run = run_of(rows, heun=dict(solver="heun"))
    run = replace(run, facts=runs.Facts("digits", (1, 8, 8), None, "fd_teacher", metrics))
    report = object.__new__(RegimesReport)
    report.runs, report.claims = [run], regime_verdicts.verdict_table(run, 200, 0.95)
    [line] = report.further_encoders()
    assert line.startswith("**digits, by a further encoder** (fd_pixels). C2 is supported in 2, contradicted in 0")
    assert "contradicted in 1, inconclusive in 0 by the distance to data." in line
    assert "Regimes that support C1, and C2 by both distances: one, main. Strongest" in line
    assert "Strongest for C2: " in line and "ratio 3 [3, 3] (supported)" in line


def test_the_points_of_a_training_are_in_order():
    rows = rows_of(("main", 80, 1), ("long", 320, 1), ("long", 20, 1), ("long", 100, 1))
    run = run_of(rows, long=dict(lr_decay="constant", updates=320))
    points = regime_verdicts.curves(run, regime_verdicts.verdict_table(run, 200, 0.95))
    assert set(points.base) == {"long"} and list(points[points.claim == "C1"].moment) == [20, 100, 320]


def test_a_main_setting_that_is_a_curve_is_called_by_its_updates():
    rows = rows_of(("main", 20, 1), ("main", 100, 1), ("main", 100, 2))
    run = run_of(rows, main=dict(lr_decay="constant", updates=100, snapshots=1))
    claims = regime_verdicts.verdict_table(run, 200, 0.95)
    assert list(claims.regime[claims.metric == run.primary]) == ["20 updates", "100 updates", "2 steps"]
    report = object.__new__(RegimesReport)
    report.runs, report.claims = [run], claims
    assert report.main_verdicts()[0] == "one, main: C1 supported"


def test_samples_are_kept_to_be_shown_again(tmp_path):
    """In a results folder as in a run's: the teacher's first, CM beside Direct CM, and the figure knows its file."""
    from dcm.support.files import write_tensors

    x = torch.linspace(-1, 1, 20 * 64).reshape(20, 1, 8, 8)
    names = ["CM, 1 step", "CM, 2 steps", "Direct CM, 1 step", "Direct CM, 2 steps", "teacher"]
    kept = {name: x + i for i, name in enumerate(names)}
    write_tensors(tmp_path / "samples_shown.safetensors", kept | {"condition": torch.arange(20)})
    shown = runs._shown(tmp_path / "samples_shown.safetensors")
    assert list(shown) == ["teacher", "CM, 1 step", "Direct CM, 1 step", "CM, 2 steps", "Direct CM, 2 steps"]
    assert all(torch.equal(v, kept[k][:16]) for k, v in shown.items())
    report = object.__new__(RegimesReport)
    report.folder, report.items, report.runs = tmp_path, [], []
    report.session = SimpleNamespace(notebook="6", provenance=SimpleNamespace(record={"commit": "c", "parameters": {}}))
    run = replace(run_of(rows_of(("main", 80, 1))), shown=shown)
    style.use_style()
    report.add_samples(run)
    again = runs._shown(tmp_path / runs.samples_file("one"))
    assert list(again) == list(shown) and all(torch.equal(again[k], v) for k, v in shown.items())
    assert "80 updates" in report.items[0][1] and runs._shown(tmp_path / "none") == {}
    record = provenance.read(tmp_path / "samples_one.png")
    assert [Path(f["file"]).name for f in record["drawn_from"]] == ["samples_one.safetensors"]


def test_the_committed_verdicts_follow_from_the_committed_rows():
    """What a GPU measured, judged anew without one; every digit but the last, which processors round differently."""
    folder = ROOT / "results/regimes_cifar10"
    loaded = runs.load_runs(str(folder), torch.device("cpu"))
    committed = pd.read_csv(folder / "verdicts.csv")
    assert [run.name for run in loaded] == ["cifar10", "cifar10_long"]
    assert all(run.study is None and set(run.groups) == set(run.rows.base) for run in loaded)
    tables = pd.concat([regime_verdicts.verdict_table(run, 10000, 0.95) for run in loaded], ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_csv(StringIO(csv_text(tables))), committed, rtol=1e-4)
