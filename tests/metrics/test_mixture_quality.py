import numpy as np
import pytest
import torch

from dcm.metrics.metric import ode_error
from dcm.metrics.mixture import MixtureQuality, projected, sliced_wasserstein
from dcm.support.seeds import generator


def test_ode_error_is_the_mean_square():
    assert ode_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])) == 2.5


def test_sliced_wasserstein_of_a_shift():
    """A shift by v moves every projection by u.v, whose mean square over the circle is |v|^2 / 2."""
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([0.6, -0.8])
    assert sliced_wasserstein(projected(x), projected(x)) == 0
    assert sliced_wasserstein(projected(x), projected((x + shift)[torch.randperm(500)])) == pytest.approx(0.5**0.5, abs=1e-4)


def test_quality_of_exact_samples_and_of_lost_modes(teacher):
    quality = MixtureQuality(teacher)
    c = torch.arange(4000) % 4
    x = teacher.draw_class(generator("cpu", 5, "data"), c)[0]
    good = quality.measure(x, c, x)
    assert good["swd_teacher"] == 0 and good["swd_data"] < 0.12 and good["modes"] == 1
    assert good["on_mode"] == pytest.approx(1 - np.exp(-4.5), abs=0.01)  # a chi-square with 2 degrees of freedom
    # all samples of each class on its last mode: one of three modes reached
    last = torch.tensor([np.flatnonzero(teacher.labels == k)[-1] for k in range(4)])
    collapsed = torch.as_tensor(teacher.means, dtype=torch.float32)[last[c]]
    bad = quality.measure(collapsed, c, x)
    assert bad["modes"] == pytest.approx(1 / 3) and bad["swd_data"] > 0.5 and bad["on_mode"] == 1
    swapped = quality.measure(x, (c + 1) % 4, x)
    assert swapped["nll"] > good["nll"] + 5 and swapped["on_mode"] < 0.1


def test_frechet_distance_and_paired_error_under_a_mixture(teacher):
    """Equal for samples that are all moved alike, and the paired error above it for a student that errs at random."""
    quality, c = MixtureQuality(teacher), torch.arange(2000) % 4
    x = teacher.draw_class(generator("cpu", 5, "data"), c)[0]
    moved = quality.measure(x + torch.tensor([0.3, -0.4]), c, x)
    assert moved["frechet"] == pytest.approx(0.25, rel=1e-4) == pytest.approx(moved["paired"], rel=1e-4)
    assert moved["paired"] == pytest.approx(2 * ode_error(x + torch.tensor([0.3, -0.4]), x))
    again = teacher.draw_class(generator("cpu", 6, "data"), c)[0]
    found = quality.measure(again, c, x)
    assert found["frechet"] < 0.01 * found["paired"]
    few = quality.measure(x[:5], c[:5], x[:5])  # one sample of some classes has no covariance
    assert np.isnan(few["frechet"]) and few["paired"] == 0
