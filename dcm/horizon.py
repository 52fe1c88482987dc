"""The horizon objective, of which the CM and the Direct CM are the two ends.

Draw n, noise data to x_{t_n}, let the teacher take min(h, n) solver steps to x_hat. The target is x_hat where it
reached data, else f(x_hat, t_{n-h}) with gradients stopped:

    L(h) = E | f(x_{t_n}, t_n) - stop_gradient f(x_hat, t_max(n-h, 0)) |^2,    f(x, 0) = x

h = 1 is the consistency model, h = N the Direct CM (Vouitsis et al. 2024, eqs. for L_CM and L_Direct); between them lies
n-step bootstrapping. The horizon may change while training: students that go on from the same weights then differ in the
objective alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.support.errors import InputError

# h, or its parts while training: (share of the updates, h), in their order.
Horizon = int | tuple[tuple[float, int], ...]


def resolve_horizon(horizon: int | str | Sequence, intervals: int) -> Horizon:
    """The horizon h in numbers.

    Parameters
    ----------
    horizon : ``cm`` (1), ``direct`` (N) or a number; ``direct>cm`` and the like, equal shares of the updates one after
        the other; ``anneal``, which halves h from N to 1; or a list of [share of the updates, horizon].
    intervals : N.

    Raises :class:`InputError` unless every 1 <= h <= N and shares sum to 1, and for ``anneal`` with N = 1.
    """
    parts: Any = horizon if isinstance(horizon, list | tuple) else [[1, horizon]]
    if isinstance(horizon, str) and ">" in horizon:
        names = horizon.split(">")
        parts = [[1 / len(names), int(name) if name.isdecimal() else name] for name in names]
    elif horizon == "anneal" and intervals > 1:
        parts = [[1 / intervals.bit_length(), intervals >> k] for k in range(intervals.bit_length())]
    named, resolved = {"cm": 1, "direct": intervals}, []
    for part in parts:
        share, h = part if isinstance(part, list | tuple) and len(part) == 2 else (0, 0)
        h = named.get(h, h) if isinstance(h, str) else h
        if type(h) is int and 1 <= h <= intervals and isinstance(share, int | float) and share > 0:
            resolved.append((share, h))
    if len(resolved) < len(parts) or abs(sum(share for share, _ in resolved) - 1) > 1e-6:
        allowed = f"'cm', 'direct', a whole number from 1 to {intervals}, several one after the other ('direct>cm'; 'anneal' from "
        allowed += "2 intervals on), or [share of the updates, horizon] pairs with shares above 0 that sum to 1"
        raise InputError(f"horizon = {horizon!r} is not possible with intervals = {intervals}; allowed: {allowed}.")
    # Neighbours of one horizon are one part, so that a horizon has one spelling.
    merged = [(sum(share for share, _ in run), h) for h, run in groupby(resolved, lambda part: part[1])]
    return tuple(merged) if len(merged) > 1 else merged[0][1]


def horizon_at(horizon: Horizon, update: int, updates: int) -> int:
    """h at update number `update` (1 .. `updates`)."""
    if isinstance(horizon, int):
        return horizon
    ends = accumulate(share for share, _ in horizon)
    return next((h for end, (_, h) in zip(ends, horizon) if update <= round(end * updates)), horizon[-1][1])


def last_horizon(horizon: Horizon) -> int:
    """h at the end of training."""
    return horizon if isinstance(horizon, int) else horizon[-1][1]


def method_name(horizon: Horizon, intervals: int) -> str:
    """How a student is called: CM, Direct CM, by its horizon, or by how that changes (``direct>cm``, ``anneal``)."""
    if isinstance(horizon, int):
        return {1: "CM", intervals: "Direct CM"}.get(horizon, f"h = {horizon}")
    if horizon == resolve_horizon("anneal", intervals) and len(horizon) > 2:
        return "anneal"
    names = [{1: "cm", intervals: "direct"}.get(h, str(h)) for _, h in horizon]
    equal = all(abs(share - 1 / len(horizon)) < 1e-6 for share, _ in horizon)
    return ">".join(n if equal else f"{share:g} {n}" for n, (share, _) in zip(names, horizon))


@dataclass(frozen=True)
class Member:
    """What tells the students of a group apart."""

    horizon: Horizon
    guidance: float
    seed: int


@dataclass(frozen=True)
class Group:
    """Students that share solver and grid: every combination of horizons, guidance scales and seeds.

    They train in lockstep on common draws: students of one seed see the same data, noise and timesteps, and one
    teacher trajectory serves every horizon. Those whose horizons have been the same so far are one student, trained once.
    """

    solver: str
    intervals: int
    guidance: tuple[float, ...]
    horizons: tuple[Horizon, ...]
    seeds: tuple[int, ...]

    @property
    def ordered(self) -> list[Horizon]:
        """The horizons in the order of the member axis: those that bootstrap at one moment stand side by side."""
        start = {h: h if isinstance(h, int) else h[0][1] for h in self.horizons}
        return sorted(self.horizons, key=lambda h: (start[h], -abs(start[h] - last_horizon(h))))

    @property
    def members(self) -> list[Member]:
        """All students, in the order of the member axis: by horizon, guidance scale, seed."""
        return [Member(h, w, s) for h in self.ordered for w in self.guidance for s in self.seeds]

    def switches(self, updates: int) -> list[int]:
        """Numbers of the last updates before any horizon changes."""
        shares = {share for h in self.horizons if not isinstance(h, int) for share in accumulate(s for s, _ in h[:-1])}
        return sorted({round(share * updates) for share in shares} & set(range(1, updates)))

    def stage(self, update: int, updates: int) -> "Stage":
        """What holds at update number `update` of `updates`."""
        return next(s for s in stages(self, updates) if update <= s.last or s.last == updates)


@dataclass(frozen=True)
class Stage:
    """A part of a group's training in which no horizon changes; slices are of the member axis."""

    last: int  # number of its last update
    horizons: tuple[int, ...]  # in the order of the group's
    trained: tuple[slice, ...]  # members that train; the others follow one of them
    followers: tuple[tuple[slice, slice], ...]  # (who, whom): their horizons have been the same up to here
    bootstrapped: tuple[slice, ...]  # trained members whose horizon may end before data


@cache
def stages(group: Group, updates: int) -> tuple[Stage, ...]:
    """The stages of a training of so many updates, in their order."""
    size, out = len(group.guidance) * len(group.seeds), []
    past: list[tuple[int, ...]] = [()] * len(group.horizons)
    members = lambda first, last: slice(first * size, last * size)

    def runs(chosen: list[bool]) -> tuple[slice, ...]:
        ends = [0, *accumulate(len(list(run)) for _, run in groupby(chosen))]
        return tuple(members(a, b) for a, b in zip(ends, ends[1:]) if chosen[a])

    for last in (*group.switches(updates), updates):
        horizons = tuple(horizon_at(h, last, updates) for h in group.ordered)
        past = [(*before, h) for before, h in zip(past, horizons)]
        leader = [past.index(own) for own in past]
        short = [h < group.intervals and k == i for i, (k, h) in enumerate(zip(leader, horizons))]
        followers = tuple((members(i, i + 1), members(k, k + 1)) for i, k in enumerate(leader) if k < i)
        out.append(Stage(last, horizons, runs([k == i for i, k in enumerate(leader)]), followers, runs(short)))
    return tuple(out)


def distance(prediction: Tensor, target: Tensor, kind: str, c: float = 1e-3) -> Tensor:
    """Loss of each member (M,) for `prediction` and `target` (M, B, *shape).

    `kind` : ``l2``, mean squared error, or ``huber``, the mean of sqrt(d^2 + c^2) - c (Song & Dhariwal 2024).
    """
    difference = (prediction - target).float()
    if kind == "l2":
        return difference.square().flatten(1).mean(1)
    return ((difference.square() + c**2).sqrt() - c).flatten(1).mean(1)


@dataclass(frozen=True)
class Batch:
    """One update's draws for a group: starting points and, for every horizon, where the teacher brought them."""

    x: Tensor  # (M, B, *shape), x_{t_n}
    t: Tensor  # (M, B), integer timesteps t_n
    condition: Tensor  # (M, B)
    x_hat: Tensor  # (M, B, *shape), after min(h, n) solver steps
    t_hat: Tensor  # (M, B), the timesteps there; 0 is data
    evaluations: int  # of the teacher, spent on it
    stage: Stage


@torch.no_grad()
def horizon_target(f: ConsistencyFunction, students: Callable[..., Tensor], batch: Batch) -> Tensor:
    """The target (M, B, *shape): x_hat at data, else the student's own answer f(x_hat, t_hat), gradients stopped.

    Parameters
    ----------
    f : the consistency function.
    students : called as ``students(x, t, condition, members=slice)``; see :class:`dcm.students.lockstep.Students`.
    batch : the update's draws. Where no member is ``bootstrapped`` the target is x_hat and costs no student evaluation;
        of members that follow another it is not computed.
    """
    target = batch.x_hat.clone()
    for some in batch.stage.bootstrapped:
        # f is the identity at t = 0, so the two cases of the target are one formula.
        target[some] = f(students, batch.x_hat[some], batch.t_hat[some], batch.condition[some], members=some)
    return target
