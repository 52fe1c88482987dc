"""The consistency function and few-step sampling with it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcm.schedule import Grid, NoiseSchedule, expand_to


@dataclass(frozen=True)
class ConsistencyFunction:
    """f(x, t) = c_skip(t) x + c_out(t) x0_hat(x, t), which is the identity at t = 0.

    c_skip = s_d^2 / ((k t)^2 + s_d^2), c_out = k t / sqrt((k t)^2 + s_d^2) (Song et al. 2023, appendix C; k as in LCM).

    Parameters
    ----------
    schedule : the teacher's noise schedule.
    sigma_data : s_d, the data's standard deviation.
    timestep_scaling : k.
    prediction : what the network's output is: ``v_prediction``, ``epsilon`` or ``sample``.
    least_alpha : the least that an ``epsilon`` is divided by. An error in it is one in x0_hat times 1 / alpha: 15 at the end
        of SDXL's schedule, 157 of DDPM's linear one. Below this alpha x0_hat is drawn towards alpha x instead.
    """

    schedule: NoiseSchedule
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0
    prediction: str = "v_prediction"
    least_alpha: float = 0.1

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) for `t` (*batch), shaped to broadcast against `like`."""
        kt = expand_to(self.timestep_scaling * t.to(like.dtype), like)
        scale = kt**2 + self.sigma_data**2
        return self.sigma_data**2 / scale, kt / scale.sqrt()

    def denoise(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x0_hat from the network's `output` at x_t = `x` (*batch, *shape)."""
        alpha, sigma = self.schedule.alpha(t, x), self.schedule.sigma(t, x)
        if self.prediction == "epsilon":  # as v, since (x - sigma eps) / alpha explodes where alpha is small
            output = (output - sigma * x) / alpha.clamp(min=self.least_alpha)
        # v = alpha eps - sigma x_0 (Salimans & Ho 2022)
        return output if self.prediction == "sample" else alpha * x - sigma * output

    def __call__(self, network: Callable[..., Tensor], x: Tensor, t: Tensor, condition: Tensor, **which) -> Tensor:
        """f(x, t, c), of x's shape.

        Parameters
        ----------
        network : called as ``network(x, t, condition, **which)``; returns x's shape.
        x : (*batch, *shape).
        t : (*batch), integer timesteps 0..T.
        condition : (*batch).
        """
        c_skip, c_out = self.coefficients(t, x)
        # Called with t = 0 a network would be off its training range; c_out makes its answer irrelevant there.
        output = network(x, t.clamp(min=1), condition, **which)
        return c_skip * x + c_out * self.denoise(output, x, t)


@torch.no_grad()
def sample(
    f: ConsistencyFunction,
    network: Callable[..., Tensor],
    noise: Tensor,
    condition: Tensor,
    grid: Grid,
    fresh_noise: list[Tensor],
) -> Tensor:
    """Few-step sampling: denoise, add fresh noise up to the next grid time, repeat (Song et al. 2023, algorithm 1).

    Parameters
    ----------
    network : as in :meth:`ConsistencyFunction.__call__`.
    noise : (*batch, *shape), standard normal starting points.
    condition : (*batch).
    grid : of the teacher's solver; the steps stand at its times (:meth:`~dcm.schedule.Grid.student_indices`).
    fresh_noise : standard normal tensors that broadcast against `noise`, one for every step after the first;
        its length sets the number of steps.

    Returns samples (*batch, *shape). Raises :class:`InputError` for more steps than the grid has intervals.
    """
    steps = grid.student_indices(len(fresh_noise) + 1)
    x = noise
    for k, n in enumerate(steps):
        t = torch.full(condition.shape, grid.time(n), device=x.device)
        if k > 0:
            x = f.schedule.add_noise(x, fresh_noise[k - 1].expand_as(x), t)
        x = f(network, x, t, condition)
    return x
