"""Interventions on the objective: each changes what it says and nothing else, and the script measures them all."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow"))
import interventions

from dcm.horizon import distance
from dcm.parameters.check import validate
from dcm.parameters.notebooks import TeacherParameters
from dcm.studies.registry import load_study, prepare_teacher
from dcm.training.saved import load_group

CPU, METHODS = torch.device("cpu"), ["cm", "direct", "direct>cm", "cm>direct"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of the script on the 2-D mixture: its folder, its rows, and the study."""
    home = tmp_path_factory.mktemp("interventions")
    groups = {
        "main": dict(solver="ddim", intervals=4, guidance=[2.0], horizons=METHODS, seeds=[0, 1, 2]),
        "w9": dict(solver="ddim", intervals=4, guidance=[9.0], horizons=METHODS, seeds=[0, 1, 2], lr=0.003),
    }
    config = dict(
        study="gmm", run_dir=str(home), results_dir=str(home / "results"), main_group="main", groups=groups,
        training=dict(updates=8, pretrain=2, batch=16, width=16, ema=0.5), teacher=dict(guidance=[2.0], intervals=[4]),
        evaluation=dict(samples=32, steps=[1]), ode_error=dict(start_times=2, start_samples=16),
    )  # fmt: skip
    (home / "study.yaml").write_text(yaml.safe_dump(config))
    teacher = validate(TeacherParameters, dict(study="gmm", run_dir=str(home), guidance=[2.0], intervals=[4]))
    prepare_teacher(SimpleNamespace(p=teacher, run_dir=home, device=CPU))
    interventions.main([str(home / "study.yaml"), str(home / "rows.csv"), "--guided", "w9"])
    return home, pd.read_csv(home / "rows.csv"), load_study("gmm", home, CPU)


def weights(home, name, update, method):
    group = load_group(home, f"intervention-{name}")
    rows = [i for i, m in enumerate(group.group.ordered) if (m == 4) == (method == "Direct CM")][0] * 3
    return torch.cat([v[rows : rows + 3].flatten() for k, v in group.tensors.items() if k.startswith(f"{update}/")])


def test_every_intervention_is_measured_once(measured, capsys):
    home, rows, _ = measured
    assert list(rows.groupby("part", sort=False).intervention.unique().map(list)) == [
        ["plain", "ema", "frozen"], ["plain", "frozen"], ["plain", "slow", "ema", "clipped", "guided_start", "steady"]
    ]  # fmt: skip
    assert (rows.groupby(["part", "intervention"]).size() == rows.part.map({"switch": 2, "from_cm": 2, "guided": 4}).groupby([rows.part, rows.intervention]).first() * 9).all()
    assert rows.ode_error.notna().all() and rows.swd_teacher.notna().equals(rows["update"] == 8)
    interventions.main([str(home / "study.yaml"), str(home / "rows.csv"), "--guided", "w9"])
    assert capsys.readouterr().out == ""
    interventions.main([str(home / "study.yaml"), str(home / "some.csv"), "--only", "switch:plain", "switch:frozen"])
    some = pd.read_csv(home / "some.csv")
    assert list(some.intervention.unique()) == ["plain", "frozen"] and set(some.part) == {"switch"}


def test_students_differ_in_their_second_half_alone(measured):
    home, _, _ = measured
    for method in ("Direct CM", "direct>cm"):
        assert all(torch.equal(weights(home, n, 4, method), weights(home, "plain", 4, method)) for n in ("ema", "frozen"))
        assert not torch.equal(weights(home, "frozen", 8, method), weights(home, "plain", 8, method))
    assert torch.equal(weights(home, "ema", 8, "Direct CM"), weights(home, "plain", 8, "Direct CM"))  # it asks no student
    assert not torch.equal(weights(home, "ema", 8, "direct>cm"), weights(home, "plain", 8, "direct>cm"))


def test_the_frozen_students_answer_at_the_point_itself_and_where_one_step_led(measured):
    home, _, study = measured
    plain = load_group(home, "intervention-plain")
    cm = plain.students(study, 8, CPU)
    stage = SimpleNamespace(last=8, horizons=(1, 4))
    batch = SimpleNamespace(
        x=torch.randn(6, 5, 2), x_hat=torch.randn(6, 5, 2), t=torch.full((6, 5), 500), t_hat=torch.full((6, 5), 250),
        condition=torch.zeros(6, 5, dtype=torch.long), stage=stage,
    )  # fmt: skip
    target = interventions.FrozenTarget(cm, 8)(study.f, None, batch)
    assert torch.allclose(target[:3], study.f(cm, batch.x_hat, batch.t_hat, batch.condition)[:3])
    assert torch.allclose(target[3:], study.f(cm, batch.x, batch.t, batch.condition)[3:])


@pytest.mark.parametrize("alone", [False, True])
def test_features_weigh_as_much_as_the_mean_squared_error_at_the_switch(alone):
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    loss = interventions.FeatureDistance(encoder, 8, alone)
    x, y = torch.randn(2, 4, 3, 2, 2, requires_grad=True), torch.randn(2, 4, 3, 2, 2)
    assert torch.equal(loss(x, y, "l2"), distance(x, y, "l2"))  # the first half
    loss.changed = True
    own = loss(x, y, "l2")
    assert own.shape == (2,) and torch.allclose(own.mean(), distance(x, y, "l2").mean() * (1 if alone else 2))
    assert torch.autograd.grad(own.sum(), x)[0].abs().sum() > 0


def test_a_clipped_student_stays_in_the_range(measured):
    _, _, study = measured
    f = interventions.Clipped(**vars(study.f), bound=0.1)
    x, t = torch.randn(50, 2), torch.full((50,), 900)
    assert f(lambda x, t, c: 30 * x, x, t, None).abs().max() < 0.2 < study.f(lambda x, t, c: 30 * x, x, t, None).abs().max()


def test_guided_students_start_as_the_guided_teacher(measured):
    home, _, study = measured
    start = interventions.guided_start(study, 1.0)
    plain, one, nine = (study.make_students([0], 16) for _ in range(3))
    study.start_from_teacher(plain, [0], 3)
    start(one, [0], 3)
    interventions.guided_start(study, 9.0)(nine, [0], 3)
    assert torch.equal(plain.weights[0], one.weights[0]) and not torch.equal(plain.weights[0], nine.weights[0])


def test_a_group_that_is_not_there(measured):
    home, _, _ = measured
    with pytest.raises(SystemExit, match="InputError: --guided w5 is not possible; allowed: a group of the study: main, w9."):
        interventions.main([str(home / "study.yaml"), str(home / "other.csv"), "--guided", "w5"])
