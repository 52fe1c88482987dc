"""Maps from x_t to data, and their derivatives, where both are known."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from dcm.consistency import ConsistencyFunction
from dcm.evaluation.flow_maps import Maps, Steepness, averaging_index, derivatives, probe_directions
from dcm.horizon import Group
from dcm.teachers.mixture import GaussianMixtureTeacher
from dcm.training.saved import DistilledGroup


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
