"""Solvers of the probability-flow ODE: the paper's three in its form; :mod:`dcm.further_solvers` has others.

The PF-ODE in the time s = t / T, solved from noise to data (Song et al. 2021, eq. 13):

    dx/ds = -beta(t)/2 x + beta(t) / (2 sigma(t)) eps_w(x, t)

A solver is one function that takes one step, ``step(noise, schedule, x, t, s)``: from `x` (B, *shape) at integer
timesteps `t` (B,) to `s` (B,), below t and at least 0. It returns (B, *shape). ``noise(x, t)`` gives eps_w, at fractional
t from 1 on too. A multistep solver is also given ``before`` (B,), the timestep of the step before, 0 where there was
none, and ``last`` (B, *shape), what that step handed on; it returns the point and what it hands on itself. To add a
solver, write its step and name it in :data:`SOLVERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dcm.further_solvers import Noise, dpmpp_2m_step, edm_heun_step
from dcm.schedule import Grid, NoiseSchedule, expand_to
from dcm.support.errors import InputError
from dcm.teacher import Teacher, guided_noise


def ddim_step(noise: Noise, schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DDIM (Song, Meng & Ermon 2021, eq. 12, eta = 0): x_s = alpha_s x0_hat + sigma_s eps_w; first order."""
    return schedule.moved(x, t, s, noise(x, t))


def _slope(noise: Noise, schedule: NoiseSchedule, x: Tensor, t: Tensor) -> Tensor:
    """dx/ds at timestep t. At t = 0, where sigma vanishes, the first table entries stand in, as in the paper's code."""
    t = t.clamp(min=1)
    beta = schedule.beta(t, x)
    return -beta / 2 * x + beta / (2 * schedule.sigma(t, x)) * noise(x, t)


def _elapsed(schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return expand_to(((s - t) / schedule.T).to(x.dtype), x)


def euler_step(noise: Noise, schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Euler's method on the PF-ODE: x + (s - t) / T dx/ds; first order."""
    return x + _elapsed(schedule, x, t, s) * _slope(noise, schedule, x, t)


def heun_step(noise: Noise, schedule: NoiseSchedule, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Heun's method: an Euler predictor and the trapezoid rule as corrector; second order, two evaluations.

    In the last step, to t = 0, the corrector calls the network at t = 1, the lowest timestep that it was trained on. The
    paper's code calls it at t = 0, with the same table entries: for the same predictions, targets differ by 7e-5 to 7e-6.
    The slope there is not the ODE's own at t = 0, so that the error stops falling from about N = 200 on.
    """
    h = _elapsed(schedule, x, t, s)
    slope = _slope(noise, schedule, x, t)
    return x + h / 2 * (slope + _slope(noise, schedule, x + h * slope, s))


@dataclass(frozen=True)
class Solver:
    """One step of a solver with its declared order and its teacher evaluations a step (guidance not counted)."""

    step: Callable[..., Any]
    order: int
    evaluations: int
    multistep: bool = False  # whether a step is given the one before

    def __call__(self, *step: Any) -> tuple[Tensor, Tensor]:
        """Where the step (noise, schedule, x, t, s, before, last) leads, and what it hands on."""
        return self.step(*step) if self.multistep else (self.step(*step[:5]), step[6])


SOLVERS = {
    "ddim": Solver(ddim_step, order=1, evaluations=1),
    "euler": Solver(euler_step, order=1, evaluations=1),
    "heun": Solver(heun_step, order=2, evaluations=2),
    "edm_heun": Solver(edm_heun_step, order=2, evaluations=2),
    "dpmpp_2m": Solver(dpmpp_2m_step, order=2, evaluations=1, multistep=True),
}
SOLVER_NAMES = {"ddim": "DDIM", "euler": "Euler", "heun": "Heun", "edm_heun": "EDM Heun", "dpmpp_2m": "DPM-Solver++ (2M)"}


def get_solver(name: str) -> Solver:
    """The solver called `name`; raises :class:`InputError` naming those there are."""
    if name not in SOLVERS:
        raise InputError(f"solver = {name!r} is unknown; allowed: {', '.join(SOLVERS)}.")
    return SOLVERS[name]


@dataclass(frozen=True)
class Solution:
    """What a solve returns."""

    x: Tensor  # (B, *shape), where each sample ended
    n: Tensor  # (B,), the grid index it ended at; 0 is data
    evaluations: int  # of the teacher, summed over samples, solver stages and guidance halves
    at: dict[int, Tensor] = field(default_factory=dict)  # for each k in `save_at`, (B, *shape) after min(k, steps) steps
    trajectory: Tensor | None = None  # (steps + 1, B, *shape), from start to end, when asked for


@torch.no_grad()
def solve(
    teacher: Teacher,
    x: Tensor,
    n: Tensor | int,
    condition: Tensor,
    guidance: float | Tensor,
    solver: str,
    grid: Grid,
    steps: int | None = None,
    save_at: tuple[int, ...] = (),
    trajectory: bool = False,
) -> Solution:
    """Take min(steps, n) solver steps from grid index n towards data, each sample from its own n.

    Parameters
    ----------
    x : (B, *shape), start points.
    n : (B,) integers on the CPU, or one, the grid index of each start.
    condition : (B,).
    guidance : w, one number or (B,).
    solver : a name in :data:`SOLVERS`.
    grid : the N intervals.
    steps : most steps a sample takes (the horizon h); when left out, all the way to data.
    save_at : horizons k: every sample is kept after min(k, steps) steps.
    trajectory : keep every point; all n must then be equal.

    Only samples that still move are evaluated. Raises :class:`InputError` for an unknown solver or n outside the grid.
    """
    method, schedule = get_solver(solver), teacher.schedule
    n = torch.as_tensor(n, device="cpu").expand(len(x)).clone()
    if len(n) and not (0 <= int(n.min()) and int(n.max()) <= grid.intervals):
        raise InputError(f"grid index n is out of range; allowed: 0 to intervals = {grid.intervals}.")
    todo = n if steps is None else n.clamp(max=steps)
    if trajectory and len(n) and int(n.min()) != int(n.max()):
        raise InputError("a trajectory needs all samples to start at the same grid index.")

    # Longest first: the samples still moving are then a prefix, and a finished one costs nothing more.
    order = torch.argsort(todo, descending=True, stable=True)
    back = torch.argsort(order).to(x.device)
    longest = int(todo.max()) if len(todo) else 0
    moving = [int((todo > k).sum()) for k in range(longest)]
    index = order.to(x.device)
    x, condition, start = x[index], condition[index], n[order].to(x.device)
    w = guidance[index] if isinstance(guidance, Tensor) else guidance

    calls = method.evaluations * (1 if not isinstance(w, Tensor) and w == 1 else 2)
    path, at, before, last = [x], {}, torch.zeros_like(start), x
    for k, m in enumerate(moving):
        if k in save_at:
            at[k] = x[back]
        c_m, w_m = condition[:m], w[:m] if isinstance(w, Tensor) else w
        now, then = grid.time(start[:m] - k), grid.time(start[:m] - k - 1)
        noise = lambda y, t: guided_noise(teacher, y, t, c_m, w_m)
        (stepped, last), before = method(noise, schedule, x[:m], now, then, before[:m], last[:m]), now
        x = stepped if m == len(x) else torch.cat([stepped, x[m:]])
        if trajectory:
            path.append(x)
    end = x[back]
    at |= {k: end for k in save_at if k not in at}
    return Solution(end, n - todo, sum(moving) * calls, at, torch.stack(path)[:, back] if trajectory else None)

