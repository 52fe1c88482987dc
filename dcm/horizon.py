"""The horizon objective, of which the CM and the Direct CM are the two ends.

Draw n, noise data to x_{t_n}, let the teacher take min(h, n) solver steps to x_hat. The target is x_hat where it
reached data, else f(x_hat, t_{n-h}) with gradients stopped:

    L(h) = E | f(x_{t_n}, t_n) - stop_gradient f(x_hat, t_max(n-h, 0)) |^2,    f(x, 0) = x

h = 1 is the consistency model, h = N the Direct CM
(Vouitsis et al. 2024, eqs. for L_CM and L_Direct); between them lies n-step bootstrapping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.support.errors import InputError


def resolve_horizon(horizon: int | str, intervals: int) -> int:
    """The horizon h as a number: ``cm`` is 1, ``direct`` is N. Raises :class:`InputError` unless 1 <= h <= N."""
    named: dict[int | str, int] = {"cm": 1, "direct": intervals}
    h = named.get(horizon, horizon)
    if not isinstance(h, int) or isinstance(h, bool) or not 1 <= h <= intervals:
        raise InputError(
            f"horizon = {horizon!r} is not possible with intervals = {intervals}; "
            f"allowed: 'cm', 'direct', or a whole number from 1 to {intervals}."
        )
    return h


@dataclass(frozen=True)
class Member:
    """What tells the students of a group apart."""

    horizon: int
    guidance: float
    seed: int


@dataclass(frozen=True)
class Group:
    """Students that share solver and grid: every combination of horizons, guidance scales and seeds.

    They train in lockstep on common draws: students of one seed see the same data, noise and timesteps, and one
    teacher trajectory serves every horizon.
    """

    solver: str
    intervals: int
    guidance: tuple[float, ...]
    horizons: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def members(self) -> list[Member]:
        """All students, longest horizon last, in the order of the member axis."""
        return [Member(h, w, s) for h in sorted(self.horizons) for w in self.guidance for s in self.seeds]

    @property
    def bootstrapped(self) -> int:
        """How many of the members, first on the member axis, have a horizon that may end before data."""
        return sum(m.horizon < self.intervals for m in self.members)

    @property
    def ends(self) -> list[int]:
        """Indices of the CMs and Direct CMs at the first guidance scale."""
        w, ends = self.guidance[0], (1, self.intervals)
        return [i for i, m in enumerate(self.members) if m.guidance == w and m.horizon in ends]


def distance(prediction: Tensor, target: Tensor, kind: str, c: float = 1e-3) -> Tensor:
    """Loss of each member, (M,).

    Parameters
    ----------
    prediction, target : (M, B, *shape).
    kind : ``l2``, mean squared error, or ``huber``, the mean of sqrt(d^2 + c^2) - c (Song & Dhariwal 2024).
    c : of the pseudo-Huber loss.
    """
    difference = (prediction - target).float()
    if kind == "l2":
        return difference.square().flatten(1).mean(1)
    return ((difference.square() + c**2).sqrt() - c).flatten(1).mean(1)


@dataclass(frozen=True)
class Batch:
    """One update's draws for a group: starting points and, for every horizon, where the teacher brought them.

    Attributes
    ----------
    x : (M, B, *shape), x_{t_n}.
    t : (M, B), integer timesteps t_n.
    condition : (M, B).
    x_hat : (M, B, *shape), after min(h, n) solver steps.
    t_hat : (M, B), the timesteps there; 0 is data.
    evaluations : teacher evaluations spent on it.
    """

    x: Tensor
    t: Tensor
    condition: Tensor
    x_hat: Tensor
    t_hat: Tensor
    evaluations: int


@torch.no_grad()
def horizon_target(f: ConsistencyFunction, students: Callable[..., Tensor], batch: Batch, bootstrapped: int) -> Tensor:
    """The target (M, B, *shape): x_hat at data, else the student's own answer f(x_hat, t_hat), gradients stopped.

    Parameters
    ----------
    f : the consistency function.
    students : called as ``students(x, t, condition, members=slice)``; see :class:`dcm.students.lockstep.Students`.
    batch : the update's draws.
    bootstrapped : how many members, first on the member axis, have a horizon below N; the others' targets are x_hat
        alone and cost no student evaluation.
    """
    k = bootstrapped
    if k == 0:
        return batch.x_hat
    some = slice(0, k)
    # f is the identity at t = 0, so the two cases of the target are one formula.
    own = f(students, batch.x_hat[some], batch.t_hat[some], batch.condition[some], members=some)
    return torch.cat([own, batch.x_hat[k:]])


def method_name(horizon: int, intervals: int) -> str:
    """How a student is called: CM, Direct CM, or by its horizon."""
    return {1: "CM", intervals: "Direct CM"}.get(horizon, f"h = {horizon}")
