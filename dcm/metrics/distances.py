"""Distances between sets of features, and spectra of images."""

from __future__ import annotations

import inspect
import warnings
from threading import Lock

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from dcm.support.errors import InputError

NAN = float("nan")
# Expected of a product of covariances; set here, not around the call, since threads share the filters.
warnings.filterwarnings("ignore", "Matrix is singular", scipy.linalg.LinAlgWarning)
_numpy_draws = Lock()  # of NumPy's global generator


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to features `a` (n, F) and `b` (m, F), by clean-fid.

    Source: Heusel et al. 2017. Its bias falls with n and m: compare values of equal sample sizes only.
    """
    from cleanfid.fid import fid_from_feats

    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return NAN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)  # of a singular product of covariances
        # whose root can have a tiny imaginary or negative rest
        return max(0.0, float(np.real(fid_from_feats(a, b))))


def check_scipy() -> None:
    """Raise :class:`InputError` where clean-fid would fail, hours later, at its first Frechet distance."""
    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        raise InputError(
            f"clean-fid cannot compute Frechet distances with SciPy {scipy.__version__}; allowed: versions below 1.18."
        )


def kernel_distance(a: np.ndarray, b: np.ndarray, subsets: int = 50, subset: int = 500) -> float:
    """Kernel distance (KID, cubic kernel) between features `a` (n, F) and `b` (m, F), by clean-fid.

    Unbiased in n and m (Binkowski et al. 2018). clean-fid draws its subsets from NumPy's global generator, which is
    set for the call and restored after it.
    """
    from cleanfid.fid import kernel_distance as cleanfid_kernel_distance

    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return NAN
    if max(len(a), len(b)) <= subset:
        subsets = 1  # every subset would be the whole set
    with _numpy_draws:
        state = np.random.get_state()
        np.random.seed(0)
        try:
            return cleanfid_kernel_distance(a, b, num_subsets=subsets, max_subset_size=subset)
        finally:
            np.random.set_state(state)


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance (n,) of each row of `x` (n, F) to its k-th nearest other row."""
    return torch.cat([torch.cdist(part, x).kthvalue(k + 1).values for part in x.split(1000)])


def _covered(x: Tensor, of: Tensor, radii: Tensor) -> float:
    """Share of the rows of `x` that lie in at least one ball around the rows `of`."""
    return float(torch.cat([(torch.cdist(p, of) <= radii).any(1) for p in x.split(1000)]).double().mean())


def precision_recall(x: np.ndarray, reference: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of features `x` (n, F) against `reference` (m, F).

    Precision: share of x within the reference's k-nearest-neighbour manifold; recall: the reverse.
    Source: Kynkaanniemi et al. 2019, eq. 1 and 2, k = 3. Raises :class:`InputError` for k + 1 samples or fewer.
    """
    if min(len(x), len(reference)) < k + 2:
        raise InputError(
            f"precision and recall need at least {k + 2} samples on both sides; there are {len(x)} and {len(reference)}."
        )
    a, b = torch.from_numpy(x), torch.from_numpy(reference)
    if not a.isfinite().all():
        return 0.0, 0.0  # a sample that is not a number lies on no manifold
    return _covered(a, b, _radii(b, k)), _covered(b, a, _radii(a, k))


def radial_power(x: Tensor) -> Tensor:
    """Radially averaged power spectrum of images (B, C, H, W): one value for each whole frequency 1 .. H // 2."""
    height, width = x.shape[-2:]
    power = torch.fft.fft2(x.double()).abs().square().mean((0, 1))
    fy, fx = (torch.fft.fftfreq(n, 1 / n, device=x.device).double() for n in (height, width))
    radius = (fy[:, None].square() + fx.square()).sqrt().round().long()
    return torch.stack([power[radius == r].mean() for r in range(1, height // 2 + 1)])


def sharpness(x: Tensor, teacher_x: Tensor) -> float:
    """Power in the upper half of the frequencies, as a ratio to the teacher's: below 1 is blurred, above 1 is noisy."""
    top = x.shape[-2] // 4
    return float((radial_power(x)[top:] / radial_power(teacher_x)[top:]).mean())
