"""Solvers of the probability-flow ODE that the paper does not use and later work does; :mod:`dcm.solvers` says how they are called."""

from collections.abc import Callable

import torch
from torch import Tensor

from dcm.schedule import NoiseSchedule, expand_to

Noise = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> eps_w(x, t)


def edm_heun_step(noise: Noise, schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Heun's method in the time sigma / alpha (Karras et al. 2022, algorithm 1), where a DDIM step is Euler's.

    Second order, two evaluations; the last step, to data, is Euler's, and its second evaluation is of no use.
    """
    eps = noise(x, t)
    there = noise(schedule.moved(x, t, s, eps), s.clamp(min=1))
    return schedule.moved(x, t, s, torch.where(expand_to(s > 0, x), (eps + there) / 2, eps))


def dpmpp_2m_step(
    noise: Noise, schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor, before: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    """DPM-Solver++ (2M) (Lu et al. 2022, algorithm 2): extrapolates x0_hat from two steps; second order, one evaluation.

    The first step, and the last one to data, are DDIM's. So a CM, for which the teacher takes one step, has DDIM's targets.
    """
    log_snr = lambda u: torch.log(schedule.alpha(u.clamp(min=1), x) / schedule.sigma(u.clamp(min=1), x))
    eps, h = noise(x, t), log_snr(s) - log_snr(t)
    x0_hat = schedule.denoised(x, t, eps)
    further = x0_hat + (x0_hat - last) * h / (2 * (log_snr(t) - log_snr(before)))
    ahead = torch.where(expand_to((before > 0) & (s > 0), x), further, x0_hat)
    kept = schedule.sigma(s, x) / schedule.sigma(t, x)
    return kept * x + (schedule.alpha(s, x) - kept * schedule.alpha(t, x)) * ahead, x0_hat
