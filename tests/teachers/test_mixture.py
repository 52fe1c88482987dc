import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from dcm.support.seeds import generator
from dcm.teacher import Teacher, guided_noise


def points(count=200, classes=5):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, generator=g, dtype=torch.float64) * 1.3
    return x, torch.randint(0, classes, (count,), generator=g)


def test_it_follows_the_protocol(teacher):
    assert isinstance(teacher, Teacher)
    assert teacher.num_classes >= 4 and len(teacher.labels) >= 8


@pytest.mark.parametrize("t", [1, 30, 400, 1000])
def test_score_is_the_gradient_of_the_log_density(teacher, t):
    x, c = points()
    x.requires_grad_()
    t = torch.full((len(x),), t)
    alpha, sigma = teacher.schedule.alpha(t, x), teacher.schedule.sigma(t, x)
    [gradient] = torch.autograd.grad(teacher._log_joint(x, c, alpha, sigma).logsumexp(0).sum(), x)
    score = teacher.score_at(x, alpha, sigma, c)
    assert (score - gradient).abs().max() <= 1e-6 * max(1, gradient.abs().max())
    assert torch.allclose(teacher.predict_noise(x, t, c), -sigma * gradient, atol=1e-6)


def test_log_density_is_scipys(teacher):
    x, c = points()
    for label in range(teacher.num_classes):
        own = np.flatnonzero(teacher.labels == label)
        share = teacher.weights[own] / teacher.weights[own].sum()
        p = sum(
            w * multivariate_normal(teacher.means[k], teacher.covariances[k]).pdf(x.numpy()) for w, k in zip(share, own)
        )
        rows = (c == label).numpy()
        np.testing.assert_allclose(teacher.log_density(x, c).numpy()[rows], np.log(p)[rows], rtol=1e-9, atol=1e-9)


def test_guidance_equals_its_formula(teacher):
    x, c = points(classes=4)
    t = torch.full((len(x),), 500)
    cond, null = teacher.predict_noise(x, t, c), teacher.predict_noise(x, t, teacher.null_condition(c))
    for w in (0.0, 1, 3.5):
        assert torch.allclose(guided_noise(teacher, x, t, c, w), null + w * (cond - null), atol=1e-10)
    each = torch.linspace(0, 5, len(x), dtype=torch.float64)
    assert torch.allclose(guided_noise(teacher, x, t, c, each), null + each[:, None] * (cond - null), atol=1e-10)


def test_samples_follow_the_density(teacher):
    x, c = teacher.draw(generator("cpu", 0, "data"), 40000)
    share = np.bincount(c, minlength=4) / len(c)
    expected = [teacher.weights[teacher.labels == k].sum() for k in range(4)]
    np.testing.assert_allclose(share, expected, atol=0.01)
    mean = (teacher.weights[:, None] * teacher.means).sum(0)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.02)
    # A mode's samples lie 2 degrees of freedom away from it in the Mahalanobis sense: E d^2 = 2.
    k = teacher.log_joint(x, c).argmax(0)
    assert abs(float((teacher.distance_to_mode(x, k) ** 2).mean()) - 2) < 0.1
