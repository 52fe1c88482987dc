"""Quality of samples where the density is exact."""

from functools import cache

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dcm.metrics.distances import FeatureSet, frechet, paired_error
from dcm.metrics.metric import Metric
from dcm.support.seeds import generator


def projected(x: Tensor, projections: int = 32) -> Tensor:
    """Points (B, D) along each of some directions, sorted (B, projections).

    In 2-D the directions are evenly spaced, else random ones, which are drawn once.
    """
    if x.shape[1] == 2:
        angle = np.pi * np.arange(projections) / projections
        directions = np.stack([np.cos(angle), np.sin(angle)], -1)
    else:
        directions = np.random.default_rng(0).standard_normal((projections, x.shape[1]))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (x.float() @ torch.as_tensor(directions, dtype=torch.float32, device=x.device).T).sort(0).values


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Sliced 2-Wasserstein distance between two equally large sets of points, :func:`projected`, in their units.

    Source: Bonneel et al. 2015.
    """
    return float((x - y).double().square().mean().sqrt())


class MixtureQuality:
    """Sample quality under an exact Gaussian mixture.

    ``swd_teacher`` and ``swd_data``: sliced Wasserstein distance to the teacher's samples from the same noise, and to
    exact samples of the data, within each class and then averaged. ``nll``: mean negative log-likelihood under the
    exact class density. ``on_mode``: share of samples within 3 standard deviations of a mode of their class (in D
    dimensions the distance that as large a share of exact samples keeps).
    ``modes``: share of modes that get at least a fifth of the samples they should. ``frechet``: Frechet distance to the
    teacher's samples, within each class and then averaged. ``paired``: a sample's mean squared distance to the teacher's
    from the same noise, which is the ODE error against the teacher times the dimension.
    """

    primary, secondary_metrics = "swd_teacher", ("nll",)
    note = "Quality is measured under the exact density; the true ODE solution is known to 1e-8."
    metrics = {
        "swd_teacher": Metric("sliced Wasserstein distance to teacher", ratio=True),
        "swd_data": Metric("sliced Wasserstein distance to data", ratio=True),
        "nll": Metric("negative log-likelihood [nats]"),
        "on_mode": Metric("share of samples on a mode", lower_is_better=False),
        "modes": Metric("share of modes reached", lower_is_better=False),
        "frechet": Metric("Frechet distance to teacher", ratio=True),
        "paired": Metric("ODE error against the teacher, summed over dimensions", ratio=True, judged=False),
    }

    def __init__(self, teacher, seed: int = 0):
        self.teacher, self.seed = teacher, seed
        dimension = teacher.shape[0]
        self.near = 3.0 if dimension == 2 else float(stats.chi2.ppf(stats.chi2.cdf(9, 2), dimension) ** 0.5)
        self._data: dict[int, Tensor] = {}

    def _reference(self, condition: Tensor) -> Tensor:
        """Exact samples of the given classes, drawn once."""
        if len(condition) not in self._data:
            g = generator(condition.device, self.seed, "reference")
            self._data[len(condition)] = self.teacher.draw_class(g, condition)[0]
        return self._data[len(condition)]

    def _seen(self, x: Tensor, condition: Tensor) -> list[tuple[Tensor, FeatureSet]]:
        """Points (B, D) by class: :func:`projected`, and as a set."""
        return [(projected(x[rows]), FeatureSet(x[rows])) for rows in (condition == c for c in condition.unique())]

    @cache  # noqa: B019 - a quality lasts as long as its notebook
    def _kept(self, x: Tensor, condition: Tensor) -> list[tuple[Tensor, FeatureSet]]:
        """What every student is compared with, seen once."""
        return self._seen(x, condition)

    def measure(self, x: Tensor, condition: Tensor, teacher_x: Tensor) -> dict[str, float]:
        """All metrics of samples `x` (B, D) of classes `condition` (B,), against `teacher_x` (B, D)."""
        own, joint = self._seen(x, condition), self.teacher.log_joint(x, condition)
        teacher, data = (self._kept(y, condition) for y in (teacher_x, self._reference(condition)))
        over = lambda distance, others, i: float(np.mean([distance(a[i], b[i]) for a, b in zip(own, others)]))
        return {
            "swd_teacher": over(sliced_wasserstein, teacher, 0),
            "swd_data": over(sliced_wasserstein, data, 0),
            "nll": -float(joint.logsumexp(0).double().mean()),
            **self._modes(x, condition, joint.argmax(0)),
            "frechet": over(frechet, teacher, 1),
            "paired": over(paired_error, teacher, 1),
        }

    def _modes(self, x: Tensor, condition: Tensor, k: Tensor) -> dict[str, float]:
        teacher = self.teacher
        near = teacher.distance_to_mode(x, k) < self.near
        got = np.bincount(k[near].cpu(), minlength=len(teacher.labels))
        share = teacher.weights / np.bincount(teacher.labels, teacher.weights)[teacher.labels]
        expected = share * np.bincount(condition.cpu(), minlength=teacher.num_classes)[teacher.labels]
        reached = (got >= expected / 5)[expected > 0]  # of the classes that were asked for
        return {"on_mode": float(near.double().mean()), "modes": float(np.mean(reached))}
