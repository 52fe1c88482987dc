"""Each metric is measured on the samples it is about, not on those beside them."""

import pytest
import torch

from dcm.metrics.distances import FeatureSet, kernel_distance, precision_recall
from dcm.metrics.images import ImageQuality
from dcm.metrics.metric import ode_error


class Brightness:
    """In place of a classifier: class 1 is a bright image, class 0 a dark one; features are three means."""

    name, accuracy = "brightness", 1.0

    def features(self, x):
        return torch.stack([x.mean((1, 2, 3)), x[..., :4].mean((1, 2, 3)), x[..., :4, :].mean((1, 2, 3))], 1).double()

    def classify(self, x):
        return (x.mean((1, 2, 3)) > 0).long()


def images(classes: torch.Tensor, seed: int) -> torch.Tensor:
    """Images (B, 1, 8, 8) that are bright where the class is 1."""
    noise = torch.randn(len(classes), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (0.5 * (2 * classes - 1)).reshape(-1, 1, 1, 1) + 0.1 * noise


@pytest.fixture
def judged():
    """Class of 40 samples; the student shows 30 of them, the teacher 10; real images are as the student's."""
    condition = torch.arange(40) % 2
    x, teacher_x = condition.clone(), condition.clone()
    x[:10], teacher_x[:30] = 1 - x[:10], 1 - teacher_x[:30]
    judge = Brightness()
    return ImageQuality(judge, judge, images(x, 2)), images(x, 0), condition, images(teacher_x, 1)


def test_class_agreement_is_that_of_the_samples(judged):
    quality, x, condition, teacher_x = judged
    assert quality.measure(x, condition, teacher_x)["agreement"] == 0.75
    assert quality.measure(teacher_x, condition, x)["agreement"] == 0.25


def test_each_distance_is_to_its_own_reference(judged):
    """To the teacher's samples, or to the real images, of which the samples are nearer here when all are bright."""
    quality, x, condition, _ = judged
    bright = images(torch.ones(40), 3)
    found = quality.measure(x, condition, bright)
    assert found["fd_teacher"] > 10 * found["fd_real"] and found["fd_pixels"] > found["fd_pixels_real"]
    same = quality.measure(bright, condition, bright)
    assert same["fd_teacher"] == pytest.approx(0, abs=1e-6) and same["fd_real"] > 0.1 and same["sharpness"] == 1


def test_sharpness_is_relative_to_the_teacher(judged):
    quality, x, condition, teacher_x = judged
    rough = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    assert quality.measure(rough, condition, x)["sharpness"] > 2 > 0.5 > quality.measure(x, condition, rough)["sharpness"]


def test_precision_is_the_samples_share_and_recall_the_teachers():
    """Samples of one class alone are all good, and miss half of what the teacher shows."""
    condition = torch.arange(40) % 2
    judge = Brightness()
    found = ImageQuality(judge, judge).measure(images(torch.ones(40), 0), condition, images(condition, 1))
    assert found["precision"] > 0.9 and found["recall"] < 0.6


def test_the_manifold_reaches_to_the_third_neighbour():
    """Points on a line, one apart: the last one's ball has a radius of 3."""
    line = FeatureSet(torch.arange(10.0)[:, None])
    for beyond, precision in ((2.9, 1.0), (3.1, 0.0)):
        assert precision_recall(FeatureSet(torch.full((5, 1), 9 + beyond)), line)[0] == precision


def test_paired_errors_are_in_each_encoders_space(judged):
    """Brighter by 0.2 throughout: by that in each of three means, and in each of 64 pixels; pairs count, not sets."""
    quality, x, condition, _ = judged
    x = x.clamp(-0.7, 0.7)
    found = quality.measure(x + 0.2, condition, x)
    assert found["paired"] == pytest.approx(3 * 0.2**2, rel=1e-4) and found["paired_pixels"] == pytest.approx(64 * 0.2**2, rel=1e-4)
    again = quality.measure(x.flip(0), condition, x)  # the other class's image beside each
    assert again["fd_teacher"] == pytest.approx(0, abs=1e-6) and again["paired"] > 1 and again["precision"] == 1


def test_kernel_distance_leaves_out_each_samples_own_pair():
    """Of two points a and b in one dimension: (k(a, a') + k(b, b') - 2 k(a, b')) / 1, with k(x, y) = (x y + 1)^3."""
    a, b = (FeatureSet(torch.tensor(v)[:, None]) for v in ([0.0, 1.0], [1.0, 2.0]))
    assert kernel_distance(a, b) == 1 + 27 - (1 + 8)


def test_ode_error_is_the_mean_square_over_elements():
    x, solution = torch.zeros(4, 2), torch.tensor([[1.0, 3.0]]).expand(4, 2)
    assert ode_error(x, solution) == 5.0 == ode_error(solution, x)
