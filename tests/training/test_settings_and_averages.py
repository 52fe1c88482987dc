"""The learning rate of every update, and the averaged weights that a run keeps."""

import pytest
import torch
from test_horizon import students_of
from training.test_run import CPU, parameters, study  # noqa: F401

from dcm.horizon import Group, distance, horizon_target
from dcm.pairs import Pairs
from dcm.students.lockstep import MLPStudents
from dcm.studies.mixture import MixtureStudy
from dcm.training import run
from dcm.training.loop import distill
from dcm.training.run import train_group
from dcm.training.settings import Settings, learning_rate, make_optimizer
from dcm.training.update import Update


def test_the_rate_is_constant_or_falls_linearly_to_zero_over_the_last_half():
    linear, constant = (Settings(updates=100, lr=2.0, lr_decay=decay) for decay in ("linear", "constant"))
    assert {learning_rate(constant, u) for u in range(1, 101)} == {2.0}
    rates = [learning_rate(linear, u) for u in range(1, 101)]
    assert rates[:51] == 51 * [2.0]
    assert rates[51:] == pytest.approx([2.0 * (100 - u) / 50 for u in range(51, 100)])
    assert rates[75] == pytest.approx(1.0) and 0 < rates[99] == pytest.approx(0.04)


def test_every_update_is_made_at_its_own_rate(teacher, f):
    group, settings = Group("ddim", 10, (2.0,), (1, 10), (0,)), Settings(updates=8, lr=1e-3, lr_decay="linear")
    states = distill(Pairs(teacher, teacher, group, 8), students_of(group, 8), settings, f)
    rates = [float(state.optimizer.param_groups[0]["lr"]) for state in states]
    assert rates == pytest.approx([1e-3 * r for r in (1, 1, 1, 1, 1, 0.75, 0.5, 0.25)])


def test_settings_reach_the_optimizer():
    students = students_of(Group("ddim", 10, (2.0,), (1,), (0,)), 8)
    [made] = make_optimizer(students, Settings(updates=1, lr=0.25, weight_decay=0.125)).param_groups
    assert (float(made["lr"]), made["weight_decay"], made["betas"]) == (0.25, 0.125, (0.9, 0.999))


@pytest.mark.parametrize("loss", ["l2", "huber"])
def test_an_update_minimises_the_loss_it_is_told_with_gradients_no_longer_than_told(teacher, f, loss):
    """Plain gradient descent at rate 1: each member moves by exactly the largest norm that is allowed."""
    group = Group("ddim", 10, (2.0,), (1, 10), (0,))
    [batch], students = Pairs(teacher, teacher, group, 32).solved([1]), students_of(group, 8)
    before = [p.detach().clone() for p in students.parameters()]
    target = horizon_target(f, students, batch)
    expected = distance(f(students, batch.x, batch.t, batch.condition), target, loss).detach()
    settings = Settings(updates=1, max_norm=1e-3, loss=loss)
    found = Update(students, torch.optim.SGD(students.parameters(), lr=1.0), settings, f)(batch, 1.0)
    torch.testing.assert_close(found, expected)
    moved = sum((p - b).square().flatten(1).sum(1) for p, b in zip(students.parameters(), before)).sqrt()
    assert moved.tolist() == pytest.approx([1e-3, 1e-3], rel=0.02)


def raw_weights(study, p) -> list[dict]:  # noqa: F811
    """Weights after every update of the run with parameters `p`, by plain distillation."""
    group = p.group()
    students = study.make_students([m.seed for m in group.members], p.width)
    study.start_from_teacher(students, [m.seed for m in group.members], p.pretrain)
    pairs = Pairs(study.teacher, study.data, group, p.batch, CPU, p.updates_per_solve)
    copied = lambda: {name: value.clone() for name, value in students.state_dict().items()}
    return [copied() for _ in distill(pairs, students, Settings.of(p), study.f)]


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_what_is_kept_is_the_average_of_the_weights(study, tmp_path, ema):  # noqa: F811
    """At every snapshot: e <- ema e + (1 - ema) w from the first update on, and the weights themselves without."""
    p = parameters(tmp_path, updates=20, ema=ema, snapshots=2, seeds=[0])
    every, made = raw_weights(study, p), train_group(study, p, CPU)
    assert len(made.updates) == 3 and made.updates[-1] == 20
    for update in made.updates:
        for name in every[0]:
            average = every[0][name]
            for weights in every[1:update]:
                average = ema * average + (1 - ema) * weights[name]
            torch.testing.assert_close(made.tensors[f"{update}/{name}"], average, rtol=1e-5, atol=1e-7, msg=name)
    moved = max(float((every[-1][n] - made.tensors[f"20/{n}"]).abs().max()) for n in every[0])
    assert moved > 1e-3 if ema else moved == 0


def test_the_loss_curve_is_the_mean_of_each_window(study, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run, "LOG_POINTS", 5)
    p = parameters(tmp_path, updates=20, seeds=[0])
    group = p.group()
    students = study.make_students([m.seed for m in group.members], p.width)
    study.start_from_teacher(students, [m.seed for m in group.members], p.pretrain)
    pairs = Pairs(study.teacher, study.data, group, p.batch, CPU, p.updates_per_solve)
    losses = torch.stack([state.loss for state in distill(pairs, students, Settings.of(p), study.f)])
    torch.testing.assert_close(train_group(study, p, CPU).tensors["loss"], losses.unflatten(0, (5, 4)).mean(1))


def test_groups_that_start_alike_share_one_fit(tmp_path, monkeypatch):
    first, second, other = (MLPStudents([*seeds], 2, 4, 1000, 8) for seeds in ((0, 1, 0), (0, 1), (0, 2)))
    MixtureStudy("gmm", tmp_path, CPU).start_from_teacher(first, [0, 1, 0], 3)
    again = MixtureStudy("gmm", tmp_path, CPU)
    monkeypatch.setattr(again, "_fitted", lambda *_: pytest.fail("it was fitted anew"))
    again.start_from_teacher(second, [0, 1], 3)
    assert torch.equal(first.weights[0][:2], second.weights[0]) and torch.equal(first.weights[0][0], first.weights[0][2])
    for students, seeds, updates in ((other, [0, 2], 3), (second, [0, 1], 4)):
        with pytest.raises(pytest.fail.Exception, match="anew"):
            again.start_from_teacher(students, seeds, updates)
