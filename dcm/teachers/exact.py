"""For teachers whose score is known in closed form: a schedule with a PF-ODE of its own, and that ODE's true solution."""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from dcm.schedule import NoiseSchedule


class ContinuousSchedule(NoiseSchedule):
    """SDXL's ``scaled_linear`` schedule with time made continuous: beta(s) = T (a + s d)^2, s in [0, 1].

    ``log alpha_bar(s)`` is then minus the integral of beta exactly, so that DDIM, Euler and Heun all
    converge to one and the same PF-ODE, and a reference solution of it exists. (With discrete tables
    beta_t and alpha_bar_t agree to O(beta_t) only, which would hide Heun's second order.)
    """

    A, D = np.sqrt(0.00085), np.sqrt(0.012) - np.sqrt(0.00085)

    @classmethod
    def scaled_linear(cls, T: int = 1000) -> ContinuousSchedule:
        """Schedule with T integer timesteps."""
        s, probe = np.arange(1, T + 1) / T, cls(np.empty(T), np.empty(T))
        return cls(probe.alpha_bar_at(s), probe.rate_at(s))

    def rate_at(self, s):
        """beta(s) for time s in [0, 1]."""
        return self.T * (self.A + s * self.D) ** 2

    def alpha_bar_at(self, s):
        """alpha_bar(s) = exp(-integral of beta from 0 to s)."""
        return np.exp(-self.T * ((self.A + s * self.D) ** 3 - self.A**3) / (3 * self.D))


def exact_solution(teacher, x: Tensor, t: int, condition: Tensor, guidance: float, tolerance: float = 1e-10) -> Tensor:
    """The PF-ODE's true solution (B, D) at data from `x` (B, D) at timestep `t`, in float64, to about 1e-8.

    SciPy's DOP853 in float64 on dx/ds = -beta(s)/2 (x + score_w(x, s)), which is smooth down to s = 0. The `teacher`
    has ``score_at`` and a :class:`ContinuousSchedule`; `condition` is (B,), `tolerance` both relative and absolute.
    """
    schedule, c = teacher.schedule, condition.cpu()  # SciPy's place

    def slope(s: float, flat: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(flat).reshape(x.shape)
        alpha_bar = torch.tensor([schedule.alpha_bar_at(s)], dtype=torch.float64)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=0).sqrt()
        score = teacher.score_at(y, alpha, sigma, c, guidance)
        return (-schedule.rate_at(s) / 2 * (y + score)).reshape(-1).numpy()

    start = x.cpu().double().reshape(-1).numpy()
    result = solve_ivp(slope, (t / schedule.T, 0.0), start, method="DOP853", rtol=tolerance, atol=tolerance)
    if not result.success:
        raise RuntimeError(f"the reference integrator stopped at t = {t}: {result.message}")
    return torch.from_numpy(result.y[:, -1].copy()).reshape(x.shape).to(x.device)
