"""Distances between sets of features, on their device, and spectra of images."""

from functools import cached_property

import torch
from torch import Tensor

NAN = float("nan")
NEIGHBOURS = 3  # of precision and recall, as Kynkaanniemi et al. have it
ROWS = 1000  # of a matrix of all pairs that are held at once


class FeatureSet:
    """Features `x` (n, F) of one set of samples; what distances need of them is computed once, in float64.

    ``mean`` (F,); ``spread``: A (n, F) with A^T A the covariance.
    """

    def __init__(self, x: Tensor):
        self.x = x.double()
        self.finite, self.mean = bool(self.x.isfinite().all()), self.x.mean(0)
        self.spread = (self.x - self.mean) / max(1, len(x) - 1) ** 0.5

    @cached_property
    def covariance(self) -> Tensor:
        """(F, F)."""
        return self.spread.T @ self.spread

    @cached_property
    def root(self) -> Tensor:
        """The covariance's symmetric root (F, F)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    @cached_property
    def radii(self) -> Tensor:
        """Distance (n,) of each row to its third nearest other row."""
        return torch.cat([torch.cdist(part, self.x).kthvalue(NEIGHBOURS + 1).values for part in self.x.split(ROWS)])

    def covers(self, x: Tensor) -> float:
        """Share of the rows of `x` that lie in at least one of the balls of :attr:`radii`."""
        return float(torch.cat([(torch.cdist(p, self.x) <= self.radii).any(1) for p in x.split(ROWS)]).double().mean())


def frechet(a: FeatureSet, b: FeatureSet) -> float:
    """Squared Frechet distance between Gaussians fitted to `a` (n, F) and `b` (m, F); NaN where that is not possible.

        |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_b^1/2 S_a S_b^1/2)^1/2

    Source: Heusel et al. 2017. clean-fid's number to 1e-6 of it, by eigenvalues in place of a general matrix root; of
    fewer samples than features by the singular values of a matrix as small as they are few, which is the same.
    Its bias falls with n and m: compare values of equal sample sizes only. The root of `b` is kept for the next call.
    """
    sizes = len(a.x), len(b.x)
    if not (a.finite and b.finite) or min(sizes) < 2:
        return NAN
    if max(sizes) <= a.x.shape[1]:
        cross = torch.linalg.svdvals(a.spread @ b.spread.T).sum()
    else:
        cross = torch.linalg.eigvalsh(b.root @ a.covariance @ b.root).clamp(min=0).sqrt().sum()
    traces = a.spread.square().sum() + b.spread.square().sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + traces - 2 * cross))


def paired_error(a: FeatureSet, b: FeatureSet) -> float:
    """Mean squared distance between features of samples and of those from the same noise, both (n, F), in their order.

    Never below the squared 2-Wasserstein distance, nor this, but for a share of 1 / n, below :func:`frechet`.
    """
    return float((a.x - b.x).square().sum(1).mean())


def kernel_distance(a: FeatureSet, b: FeatureSet) -> float:
    """Kernel distance (KID: squared MMD with the kernel (x.y / F + 1)^3) between `a` and `b`, both (n, F).

    Over all pairs i != j, which is unbiased (Binkowski et al. 2018) also where row i of both comes from one noise. NaN
    where one is not finite.
    """
    if not (a.finite and b.finite):
        return NAN
    n, features = a.x.shape
    kernel, total = lambda x, y: (x @ y.T / features + 1) ** 3, 0.0
    for i in range(0, n, ROWS):
        x, y = a.x[i : i + ROWS], b.x[i : i + ROWS]
        k = kernel(x, a.x) + kernel(y, b.x) - kernel(x, b.x) - kernel(y, a.x)
        total += float(k.sum() - k.diagonal(i).sum())
    return total / (n * (n - 1))


def precision_recall(a: FeatureSet, reference: FeatureSet) -> tuple[float, float]:
    """Improved precision and recall of features `a` (n, F) against `reference` (m, F).

    Precision: share of `a` within the reference's manifold of third-nearest neighbours; recall: the reverse.
    Source: Kynkaanniemi et al. 2019, eq. 1 and 2. Needs at least 4 samples of both.
    """
    if not a.finite:
        return 0.0, 0.0  # a sample that is not a number lies on no manifold
    return reference.covers(a.x), a.covers(reference.x)


def frequencies(x: Tensor) -> Tensor:
    """The whole frequency (H, W) that each coefficient of the Fourier transform of images (B, C, H, W) counts to."""
    fy, fx = (torch.fft.fftfreq(n, 1 / n, device=x.device).double() for n in x.shape[-2:])
    return (fy[:, None].square() + fx.square()).sqrt().round().long()


def radial_power(x: Tensor) -> Tensor:
    """Radially averaged power spectrum of images (B, C, H, W): one value for each whole frequency 1 .. H // 2."""
    power, radius = torch.fft.fft2(x.double()).abs().square().mean((0, 1)), frequencies(x)
    return torch.stack([power[radius == r].mean() for r in range(1, x.shape[-2] // 2 + 1)])


def sharpness(power: Tensor, teacher: Tensor) -> float:
    """A :func:`radial_power` (R,) in its upper half, as a ratio to the teacher's: below 1 is blurred, above 1 is noisy."""
    return float((power / teacher)[len(power) // 2 :].mean())
