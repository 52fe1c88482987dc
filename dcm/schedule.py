"""Variance-preserving noise schedules and the grid of solver times.

One convention everywhere: ``x_t = alpha_t x_0 + sigma_t eps`` with ``alpha_t = sqrt(alpha_bar_t)`` and
``sigma_t = sqrt(1 - alpha_bar_t)``; integer timesteps 1..T, tables indexed ``t - 1``; t = 0 is data
(alpha 1, sigma 0). The rate ``beta(t)`` is per unit of the time s = t / T in [0, 1].
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dcm.support.errors import InputError


def expand_to(value: Tensor, x: Tensor) -> Tensor:
    """Append axes to `value` (*batch) until it broadcasts against `x` (*batch, *shape)."""
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


@dataclass(frozen=True)
class NoiseSchedule:
    """Tables of a discrete variance-preserving schedule."""

    alpha_bar: np.ndarray  # (T,), float64, decreasing, in (0, 1)
    rate: np.ndarray  # (T,), float64: beta(t), the speed of the PF-ODE per unit of s = t / T
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_betas(cls, betas) -> "NoiseSchedule":
        """From a diffusers scheduler's ``betas`` (T,), in the paper's form: beta(t) = T beta_t."""
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
            raise InputError("betas must be one row of numbers between 0 and 1.")
        return cls(np.cumprod(1 - betas), len(betas) * betas)

    @property
    def T(self) -> int:
        """Number of timesteps."""
        return len(self.alpha_bar)

    def _lookup(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        key = (name, str(like.device), like.dtype)
        if key not in self._cache:  # T + 1 entries, so that entry t belongs to timestep t
            alpha_bar = np.concatenate([[1.0], self.alpha_bar])
            # No rate belongs to t = 0: the paper's code reads index 0 of its table there.
            rate = np.concatenate([self.rate[:1], self.rate])
            table = {"alpha": np.sqrt(alpha_bar), "sigma": np.sqrt(1 - alpha_bar), "rate": rate}[name]
            self._cache[key] = torch.as_tensor(table, dtype=like.dtype, device=like.device)
        if t.is_floating_point():
            return expand_to(self._between(name, t.reshape(-1), like).reshape(t.shape), like)
        # index_select is several times faster than indexing with a tensor on CPUs
        return expand_to(self._cache[key].index_select(0, t.reshape(-1)).reshape(t.shape), like)

    def _between(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """A table's value at fractional `t` (B,) from 1 on: alpha and sigma by the logarithm of their ratio, beta itself."""
        if not (t.is_cuda or (1 <= t.min() and t.max() <= self.T)):  # a CUDA graph cannot ask
            raise InputError(f"t = {float(t.min()):g} lies outside the schedule; allowed: fractional timesteps from 1 to {self.T}.")
        low = t.long().clamp(1, max(1, self.T - 1))
        ends = lambda name: torch.stack([self._lookup(name, low + k, t) for k in (0, 1)])
        if name == "rate":
            return torch.lerp(*ends("rate"), t - low).to(like.dtype)
        log_snr = 2 * torch.lerp(*(ends("alpha") / ends("sigma")).log(), t - low)
        return torch.sigmoid(log_snr if name == "alpha" else -log_snr).sqrt().to(like.dtype)

    def alpha(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha_t for integer `t` (*batch), shaped to broadcast against `like` (*batch, *shape), in its dtype.

        Fractional `t`, from 1 on, lie between two entries: in log-SNR for alpha and sigma, linearly for beta.
        """
        return self._lookup("alpha", t, like)

    def sigma(self, t: Tensor, like: Tensor) -> Tensor:
        """sigma_t, as :meth:`alpha`."""
        return self._lookup("sigma", t, like)

    def beta(self, t: Tensor, like: Tensor) -> Tensor:
        """beta(t) = T beta_t, as :meth:`alpha`; at t = 0 the first entry."""
        return self._lookup("rate", t, like)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps, for `x_0` and `noise` (*batch, *shape) and `t` (*batch)."""
        return self.alpha(t, x_0) * x_0 + self.sigma(t, x_0) * noise

    def denoised(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x0_hat (*batch, *shape) at x_t = `x`, where the noise in it is `eps`."""
        return (x - self.sigma(t, x) * eps) / self.alpha(t, x)

    def moved(self, x: Tensor, t: Tensor, s: Tensor, eps: Tensor) -> Tensor:
        """x_s with the x0_hat and the noise `eps` of x_t = `x`."""
        return self.alpha(s, x) * self.denoised(x, t, eps) + self.sigma(s, x) * eps


@dataclass(frozen=True)
class Grid:
    """The solver's N intervals: t_n = n T / N, n = 0..N.

    Raises :class:`InputError` when N does not divide T.
    """

    intervals: int
    T: int = 1000

    def __post_init__(self) -> None:
        allowed = [n for n in range(1, self.T + 1) if self.T % n == 0]
        if self.intervals not in allowed:
            wrong = f"intervals = {self.intervals} does not divide the teacher's {self.T} timesteps"
            raise InputError(f"{wrong}; allowed: {', '.join(map(str, allowed))}.")

    def time(self, n: Tensor) -> Tensor:
        """Integer timestep of grid index `n`."""
        return n * (self.T // self.intervals)

    def student_indices(self, steps: int) -> list[int]:
        """Grid indices of a student's `steps` sampling steps, noisiest first (paper's code).

        They stand at ``round(linspace(0, N, steps, endpoint=False))`` of the grid counted from N down.
        """
        if not 1 <= steps <= self.intervals:
            raise InputError(f"sampling steps = {steps} is out of range; allowed: 1 to intervals = {self.intervals}.")
        return [self.intervals - int(k) for k in np.round(np.linspace(0, self.intervals, steps, endpoint=False))]
