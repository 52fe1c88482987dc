"""Distillation with the horizon objective, of which the CM and the Direct CM are the two ends.

Draw n, noise data to x_{t_n}, let the teacher take min(h, n) solver steps to x_hat. The target is x_hat where it
reached data, else f(x_hat, t_{n-h}) with gradients stopped. h = 1 is the consistency model, h = N the Direct CM
(Vouitsis et al. 2024, eqs. for L_CM and L_Direct); between them lies n-step bootstrapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.errors import InputError, TrainingError
from dcm.random import generator
from dcm.schedule import Grid
from dcm.solvers import get_solver, solve
from dcm.students import Students
from dcm.teachers.base import Teacher
from dcm.team import ALONE, Team

HORIZON_NAMES = {"cm": lambda intervals: 1, "direct": lambda intervals: intervals}


def resolve_horizon(horizon: int | str, intervals: int) -> int:
    """The horizon h as a number: ``cm`` is 1, ``direct`` is N. Raises :class:`InputError` unless 1 <= h <= N."""
    h = HORIZON_NAMES[horizon](intervals) if horizon in HORIZON_NAMES else horizon
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


@dataclass(frozen=True)
class Settings:
    """How students train. Defaults are the paper's where it has one.

    Attributes
    ----------
    updates : number of updates. batch : samples an update. lr : learning rate. lr_decay : ``constant``, or
    ``linear`` to zero over the last half. weight_decay : AdamW's. max_norm : gradient clipping.
    loss : ``l2`` (mean squared error) or ``huber`` (pseudo-Huber with c = 1e-3).
    together : updates whose targets the teacher solves in one go; changes speed, not results.
    optimizer : ``adamw``, or ``adamw8bit`` (bitsandbytes': its state takes a quarter of the memory).
    """

    updates: int
    batch: int
    lr: float = 1e-4
    lr_decay: str = "constant"
    weight_decay: float = 1e-2
    max_norm: float = 1.0
    loss: str = "l2"
    together: int = 1
    optimizer: str = "adamw"


@dataclass
class State:
    """What :func:`distill` yields after each update; the caller owns logging, EMA, checkpoints and stopping."""

    update: int
    students: Students
    optimizer: torch.optim.Optimizer
    loss: Tensor  # (M,), of this update
    evaluations: int  # teacher evaluations so far


def distance(prediction: Tensor, target: Tensor, kind: str, c: float = 1e-3) -> Tensor:
    """Loss of each member, (M, B, *shape) -> (M,): mean squared error, or pseudo-Huber (Song & Dhariwal 2024)."""
    difference = (prediction - target).float()
    if kind == "l2":
        return difference.square().flatten(1).mean(1)
    return ((difference.square() + c**2).sqrt() - c).flatten(1).mean(1)


@dataclass(frozen=True)
class Batch:
    """One update's draws for a group: starting points and, for every horizon, where the teacher brought them.

    Attributes
    ----------
    x : (M, B, *shape), x_{t_n}. t, condition : (M, B). x_hat, t_hat : the same after min(h, n) solver steps.
    evaluations : teacher evaluations spent on it.
    """

    x: Tensor
    t: Tensor
    condition: Tensor
    x_hat: Tensor
    t_hat: Tensor
    evaluations: int


def draw_batches(
    teacher: Teacher, data, group: Group, batch: int, updates: Sequence[int], device, team: Team = ALONE
) -> list[Batch]:
    """Draw the batches of the given update numbers and solve them together; of a team, each its own rows.

    What is drawn depends on (seed, update) alone. One solve for several updates costs the same evaluations in fewer,
    larger teacher calls, which is what a small teacher needs.
    """
    grid, draws = Grid(group.intervals, teacher.schedule.T), []
    for update in updates:
        for seed in group.seeds:
            x_0, condition = data.draw(generator(device, seed, "data", update), batch)
            noise = torch.randn(x_0.shape, generator=generator(device, seed, "noise", update), device=device)
            n = torch.randint(1, grid.intervals + 1, (batch,), generator=generator("cpu", seed, "index", update))
            x = teacher.schedule.add_noise(x_0, noise, grid.time(n).to(device))
            draws.append([v[team.rows(batch)] for v in (x, n, condition)])
    x, n, condition = (torch.stack(column) for column in zip(*draws))

    U, W, S, B = len(updates), len(group.guidance), len(group.seeds), x.shape[1]
    horizons = sorted(group.horizons)
    # (U S, B, ...) -> (U, W, S, B, ...): every guidance scale solves from the same points.
    x, n, condition = (v.unflatten(0, (U, 1, S)).expand(U, W, S, *v.shape[1:]) for v in (x, n, condition))
    w = group.guidance[0] if W == 1 else torch.tensor(group.guidance, device=device).repeat_interleave(S * B).repeat(U)
    start = [v.flatten(0, 3) for v in (x, n, condition)]
    solution = solve(teacher, *start, w, group.solver, grid, steps=max(horizons), save_at=tuple(horizons))
    x_hat = torch.stack([solution.at[h] for h in horizons]).unflatten(1, (U, W, S, B))
    n_hat = torch.stack([(n - h).clamp(min=0) for h in horizons])
    t, t_hat = grid.time(n).to(device), grid.time(n_hat).to(device)

    def members(v: Tensor) -> Tensor:  # (W, S, B, ...) -> (M, B, ...)
        return v.expand(len(horizons), *v.shape).flatten(0, 2)

    cost = solution.evaluations / max(1, int(n.clamp(max=max(horizons)).sum()))
    return [
        Batch(
            members(x[u]),
            members(t[u]),
            members(condition[u]),
            x_hat[:, u].flatten(0, 2),
            t_hat[:, u].flatten(0, 2),
            round(cost * int(n[u].clamp(max=max(horizons)).sum())),
        )  # fmt: skip
        for u in range(U)
    ]


def batches(
    teacher: Teacher, data, group: Group, settings: Settings, device, start: int = 0, team: Team = ALONE
) -> Iterator[tuple[int, Batch]]:
    """Update numbers after `start` with their batches, solved ``settings.together`` at a time."""
    size = settings.together
    for first in range(start - start % size + 1, settings.updates + 1, size):
        # A resumed run solves its first chunk whole: other shapes would change the last bits.
        updates = range(first, min(first + size, settings.updates + 1))
        solved = zip(updates, draw_batches(teacher, data, group, settings.batch, updates, device, team))
        yield from ((update, batch) for update, batch in solved if update > start)


@torch.no_grad()
def horizon_target(f: ConsistencyFunction, students: Students, batch: Batch, bootstrapped: int) -> Tensor:
    """The target (M, B, *shape): x_hat at data, else the student's own answer f(x_hat, t_hat), gradients stopped.

    `bootstrapped` counts the members, first on the member axis, whose horizon ends before data; the others'
    targets are x_hat alone and cost no student evaluation.
    """
    k = bootstrapped
    if k == 0:
        return batch.x_hat
    some = slice(0, k)
    # f is the identity at t = 0, so the two cases of the target are one formula.
    own = f(students, batch.x_hat[some], batch.t_hat[some], batch.condition[some], members=some)
    return torch.cat([own, batch.x_hat[k:]])


def learning_rate(settings: Settings, update: int) -> float:
    """Learning rate of update number `update` (1..updates)."""
    if settings.lr_decay == "constant":
        return settings.lr
    return settings.lr * min(1.0, 2 * (1 - (update - 1) / settings.updates))


def make_optimizer(students: Students, settings: Settings) -> torch.optim.Optimizer:
    """AdamW as in the paper's code: betas 0.9 and 0.999. Raises :class:`InputError` without bitsandbytes for 8 bits."""
    if settings.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise InputError(
                "optimizer = 'adamw8bit' needs the package bitsandbytes, which is not installed; allowed here: adamw."
            ) from None
        return AdamW8bit(students.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    fused = next(students.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(students.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)


def distill(
    teacher: Teacher,
    data,
    students: Students,
    group: Group,
    settings: Settings,
    f: ConsistencyFunction,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
    evaluations: int = 0,
    team: Team = ALONE,
) -> Iterator[State]:
    """Train a group of students, yielding a :class:`State` after every update.

    Parameters
    ----------
    teacher, data : the teacher and a source with ``draw(generator, batch) -> (x_0, condition)``.
    students : on the device to train on, members in the order of ``group.members``.
    f : the consistency function.
    optimizer, start, evaluations : from a checkpoint, to go on after update number `start`; the run then equals
        one that was never interrupted.
    team : the processes that share every batch; gradients are averaged over them.

    Raises :class:`InputError` for impossible settings and :class:`TrainingError` when a loss is not finite.
    """
    Grid(group.intervals, teacher.schedule.T)
    get_solver(group.solver)
    for h in group.horizons:
        resolve_horizon(h, group.intervals)
    if students.size != len(group.members):
        raise InputError(f"{students.size} students were given for a group of {len(group.members)}.")
    optimizer = optimizer or make_optimizer(students, settings)
    device = next(students.parameters()).device
    bootstrapped = sum(m.horizon < group.intervals for m in group.members)

    for update, batch in batches(teacher, data, group, settings, device, start, team):
        evaluations += team.total(batch.evaluations)
        target = horizon_target(f, students, batch, bootstrapped)

        for parameters in optimizer.param_groups:
            parameters["lr"] = learning_rate(settings, update)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in students.parts:
            own = f(students, batch.x[part], batch.t[part], batch.condition[part], members=part)
            losses.append(distance(own, target[part], settings.loss))
            students.backward(losses[-1], part)
        loss = torch.cat(losses).detach()
        team.average([loss, *(p.grad for p in students.parameters())])
        students.clip_gradients(settings.max_norm)
        optimizer.step()
        yield State(update, students, optimizer, loss, evaluations)


def check_finite(state: State, members: Sequence[Member]) -> None:
    """Raise :class:`TrainingError` naming the update and the student whose loss is not finite.

    Left to the caller, once every few updates: reading a loss makes a GPU wait.
    """
    bad = torch.nonzero(~state.loss.isfinite()).flatten().tolist()
    if bad:
        m = members[bad[0]]
        raise TrainingError(
            f"the loss of the student with horizon {m.horizon}, guidance {m.guidance:g}, seed {m.seed} is not finite at "
            f"update {state.update}; the last checkpoint is kept: lower lr, or use loss = 'huber' or a smaller guidance."
        )
