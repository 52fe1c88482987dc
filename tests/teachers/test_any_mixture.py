"""What the regimes vary beyond the studies' own settings: mixtures of more dimensions and modes."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from dcm.metrics.mixture import MixtureQuality, projected, sliced_wasserstein
from dcm.parameters.check import validate
from dcm.parameters.notebooks import TeacherParameters
from dcm.support.errors import InputError
from dcm.support.seeds import generator
from dcm.teachers.mixture import GaussianMixtureTeacher

TEACHER = dict(study="gmm", run_dir="runs/x", guidance=[1.0], intervals=[10])


def test_round_mixtures_have_the_score_of_their_density():
    """The short cut for round components against the gradient of SciPy-checked densities, with guidance."""
    teacher = GaussianMixtureTeacher.of(6, modes=5)
    g = torch.Generator().manual_seed(0)
    x, c = torch.randn(100, 6, generator=g, dtype=torch.float64).requires_grad_(), torch.arange(100) % 4
    t = torch.randint(1, 1001, (100,), generator=g)
    alpha, sigma = teacher.schedule.alpha(t, x), teacher.schedule.sigma(t, x)
    log_p = lambda condition: teacher._log_joint(x, condition, alpha, sigma).logsumexp(0).sum()
    [own], [null] = (torch.autograd.grad(log_p(k), x) for k in (c, torch.full_like(c, 4)))
    for w in (1, 3.0):
        expected = null + w * (own - null)
        assert torch.allclose(teacher.score_at(x.detach(), alpha, sigma, c, w), expected, rtol=1e-6, atol=1e-6)
    k = np.flatnonzero(teacher.labels == 0)
    share = teacher.weights[k] / teacher.weights[k].sum()
    scipy = sum(w * multivariate_normal(teacher.means[i], teacher.covariances[i]).pdf(teacher.means[k]) for w, i in zip(share, k))  # fmt: skip
    own = teacher.log_density(torch.from_numpy(teacher.means[k]), torch.zeros(len(k), dtype=torch.long))
    assert np.allclose(own.exp(), scipy, rtol=1e-8)


@pytest.mark.parametrize(("dimension", "modes"), [(2, 12), (16, 3)])
def test_exact_samples_of_any_mixture_are_good(dimension, modes):
    teacher = GaussianMixtureTeacher.of(dimension, modes)
    quality, c = MixtureQuality(teacher), torch.arange(4000) % 4
    x = teacher.draw_class(generator("cpu", 5, "data"), c)[0]
    good = quality.measure(x, c, x)
    assert good["modes"] == 1 and good["on_mode"] == pytest.approx(1 - np.exp(-4.5), abs=0.01)
    assert dimension > 2 or np.linalg.det(teacher.covariances[0]) < np.linalg.det(
        GaussianMixtureTeacher.of().covariances[0]
    )
    assert quality.measure(x + 0.5, c, x)["on_mode"] < 0.5


def test_sliced_wasserstein_of_a_shift_in_many_dimensions():
    """The mean square of u.v over directions u is about |v|^2 / D."""
    x, shift = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)), torch.eye(8)[0]
    assert sliced_wasserstein(projected(x, 4000), projected(x + shift, 4000)) == pytest.approx(8**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (
            TeacherParameters,
            TEACHER | {"dimension": 1},
            "dimension = 1 is not possible; allowed: a whole number, at least 2",
        ),
        (
            TeacherParameters,
            TEACHER | {"study": "digits", "modes": 9},
            "modes = 9 is not possible for the study digits",
        ),
    ],
)
def test_impossible_mixtures_are_refused(model, values, message):
    with pytest.raises(InputError, match=message):
        validate(model, values)
