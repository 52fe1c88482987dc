"""The true solution of the PF-ODE, for a teacher whose score is known in closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def exact_solution(
    teacher, x: Tensor, t: Tensor | int, condition: Tensor, guidance: float, tolerance: float = 1e-10
) -> Tensor:
    """The PF-ODE's true solution at data for a teacher with closed-form score, to about 1e-8.

    SciPy's DOP853 in float64 on dx/ds = -beta(s)/2 (x + score_w(x, s)), which is smooth down to s = 0.
    Samples that start at the same timestep are integrated together.

    Parameters
    ----------
    teacher : has ``score_at`` and a :class:`ContinuousSchedule` (the Gaussian mixture).
    x : (B, D). t : timestep 1..T of each start, (B,) or one. condition : (B,). guidance : w, one number.

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
