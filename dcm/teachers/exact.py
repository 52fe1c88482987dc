"""For teachers whose score is known in closed form: a schedule with a PF-ODE of its own, and that ODE's true solution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcm.schedule import NoiseSchedule


@dataclass(frozen=True)
class ContinuousSchedule(NoiseSchedule):
    """SDXL's ``scaled_linear`` schedule with time made continuous: beta(s) = T (a + s d)^2, s in [0, 1].

    ``log alpha_bar(s)`` is then minus the integral of beta exactly, so that DDIM, Euler and Heun all
    converge to one and the same PF-ODE, and a reference solution of it exists. (With discrete tables
    beta_t and alpha_bar_t agree to O(beta_t) only, which would hide Heun's second order.)
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> ContinuousSchedule:
        """Schedule with T integer timesteps; the defaults are SDXL's."""
        s = np.arange(1, T + 1) / T
        probe = cls(np.empty(T), np.empty(T), beta_start=beta_start, beta_end=beta_end)
        return cls(probe.alpha_bar_at(s), probe.rate_at(s), beta_start=beta_start, beta_end=beta_end)

    def rate_at(self, s):
        """beta(s) for time s in [0, 1]."""
        a, b = np.sqrt(self.beta_start), np.sqrt(self.beta_end)
        return self.T * (a + s * (b - a)) ** 2

    def alpha_bar_at(self, s):
        """alpha_bar(s) = exp(-integral of beta from 0 to s)."""
        a, b = np.sqrt(self.beta_start), np.sqrt(self.beta_end)
        return np.exp(-self.T * ((a + s * (b - a)) ** 3 - a**3) / (3 * (b - a)))


def exact_solution(
    teacher, x: Tensor, t: Tensor | int, condition: Tensor, guidance: float, tolerance: float = 1e-10
) -> Tensor:
    """The PF-ODE's true solution at data for a teacher with closed-form score, to about 1e-8.

    SciPy's DOP853 in float64 on dx/ds = -beta(s)/2 (x + score_w(x, s)), which is smooth down to s = 0.
    Samples that start at the same timestep are integrated together.

    Parameters
    ----------
    teacher : has ``score_at`` and a :class:`ContinuousSchedule` (the Gaussian mixture).
    x : (B, D).
    t : timestep 1..T of each start, (B,) or one.
    condition : (B,).
    guidance : w, one number.
    tolerance : of the integrator, relative and absolute.

    Returns float64 (B, D).
    """
    from scipy.integrate import solve_ivp

    schedule, x = teacher.schedule, x.to(torch.float64)
    t = torch.as_tensor(t).expand(len(x))
    out = torch.empty_like(x)
    for time in t.unique().tolist():
        group = t == time
        c, shape = condition[group], x[group].shape

        def slope(s: float, flat: np.ndarray) -> np.ndarray:
            y = torch.from_numpy(flat).reshape(shape)
            alpha_bar = torch.tensor([schedule.alpha_bar_at(s)], dtype=torch.float64)
            alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=0).sqrt()
            score = teacher.score_at(y, alpha, sigma, c, guidance)
            return (-schedule.rate_at(s) / 2 * (y + score)).reshape(-1).numpy()

        flat = x[group].reshape(-1).numpy()
        result = solve_ivp(slope, (time / schedule.T, 0.0), flat, method="DOP853", rtol=tolerance, atol=tolerance)
        if not result.success:
            raise RuntimeError(f"the reference integrator stopped at t = {time}: {result.message}")
        out[group] = torch.from_numpy(result.y[:, -1]).reshape(shape)
    return out
