"""Distillation with the horizon objective, of which the CM and the Direct CM are the two ends.

Draw n, noise data to x_{t_n}, let the teacher take min(h, n) solver steps to x_hat. The target is x_hat where it
reached data, else f(x_hat, t_{n-h}) with gradients stopped. h = 1 is the consistency model, h = N the Direct CM
(Vouitsis et al. 2024, eqs. for L_CM and L_Direct); between them lies n-step bootstrapping.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.errors import InputError, TrainingError
from dcm.in_flight import Starts, solve_in_flight
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
    slots : when above 0, solve that many ODEs in flight instead (:mod:`dcm.in_flight`); changes speed, not results.
    reuse : pairs taken from one teacher trajectory. Above 1, trajectories start at n = N and each gives pairs at
    `reuse` of its N points: N / reuse solver steps a pair instead of (N + 1) / 2, at the price of batches with fewer
    independent images, whose points lie on the teacher's path instead of on noised data.
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
    slots: int = 0
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.reuse:
            raise InputError(f"reuse = {self.reuse} is not possible; allowed: divisors of batch = {self.batch}.")
        if self.reuse > 1 and self.slots:
            raise InputError(
                "slots are not possible with reuse above 1, whose solves all last equally long; set slots = 0."
            )


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


def draw_starts(
    teacher: Teacher, data, group: Group, batch: int, update: int, device, reuse: int = 1, team: Team = ALONE
) -> Starts:
    """Starting points of one update for every guidance scale and seed: (W S B / reuse) in that order.

    What is drawn depends on (seed, update) alone; of a team, each takes its own rows. With `reuse` above 1 all start
    at n = N; see :class:`Settings`.
    """
    grid, draws, count = Grid(group.intervals, teacher.schedule.T), [], batch // reuse
    for seed in group.seeds:
        x_0, condition = data.draw(generator(device, seed, "data", update), count)
        noise = torch.randn(x_0.shape, generator=generator(device, seed, "noise", update), device=device)
        n = torch.randint(1, grid.intervals + 1, (count,), generator=generator("cpu", seed, "index", update))
        n = n if reuse == 1 else torch.full_like(n, grid.intervals)
        x = teacher.schedule.add_noise(x_0, noise, grid.time(n).to(device))
        draws.append([v[team.rows(count)] for v in (x, n, condition)])
    # Every guidance scale solves from the same points.
    W = len(group.guidance)
    x, n, condition = (torch.cat(column * W) for column in zip(*draws))
    w = group.guidance[0] if W == 1 else torch.tensor(group.guidance, device=device).repeat_interleave(len(x) // W)
    return Starts(x, n, condition, w)


def joined(starts: Sequence[Starts]) -> Starts:
    """Several starts as one, in their order."""
    x, n, condition = (torch.cat([getattr(s, name) for s in starts]) for name in ("x", "n", "condition"))
    w = starts[0].guidance
    return Starts(x, n, condition, w.repeat(len(starts)) if isinstance(w, Tensor) else w)


def to_batch(
    group: Group, grid: Grid, x: Tensor, n: Tensor, condition: Tensor, x_hat: dict[int, Tensor], evaluations: int
) -> Batch:
    """The members' batch from points (W S B), grid indices n and, by horizon, where the teacher brought them."""
    horizons, device = sorted(group.horizons), x.device

    def members(v: Tensor) -> Tensor:  # (W S B, ...) -> (W S, B, ...)
        return v.unflatten(0, (len(group.guidance) * len(group.seeds), -1))

    t_hat = torch.cat([members(grid.time((n - h).clamp(min=0)).to(device)) for h in horizons])
    x, t, condition = (members(v).repeat(len(horizons), *[1] * v.ndim) for v in (x, grid.time(n).to(device), condition))
    return Batch(x, t, condition, torch.cat([members(x_hat[h]) for h in horizons]), t_hat, evaluations)


def draw_batches(
    teacher: Teacher, data, group: Group, batch: int, updates: Sequence[int], device, team: Team = ALONE
) -> list[Batch]:
    """Draw the batches of the given update numbers and solve them together.

    One solve for several updates costs the same evaluations in fewer, larger teacher calls, which is what a small
    teacher needs.
    """
    grid, longest = Grid(group.intervals, teacher.schedule.T), max(group.horizons)
    starts = [draw_starts(teacher, data, group, batch, update, device, team=team) for update in updates]
    every = joined(starts)
    solution = solve(
        teacher, every.x, every.n, every.condition, every.guidance, group.solver, grid, longest, tuple(group.horizons)
    )
    steps = [int(s.n.clamp(max=longest).sum()) for s in starts]
    each = solution.evaluations / max(1, sum(steps))
    size = len(starts[0].x)
    return [
        to_batch(
            group, grid, s.x, s.n, s.condition,
            {h: x[u * size : (u + 1) * size] for h, x in solution.at.items()}, round(each * steps[u]),
        )
        for u, s in enumerate(starts)
    ]  # fmt: skip


def reused_batches(
    teacher: Teacher, data, group: Group, batch: int, updates: Sequence[int], device, reuse: int, team: Team = ALONE
) -> list[Batch]:
    """As :func:`draw_batches`, with `reuse` pairs from each trajectory; see :class:`Settings`."""
    N = group.intervals
    grid, size = Grid(N, teacher.schedule.T), batch // reuse
    starts = [draw_starts(teacher, data, group, batch, update, device, reuse, team) for update in updates]
    every, W = joined(starts), len(group.guidance)
    solution = solve(teacher, every.x, N, every.condition, every.guidance, group.solver, grid, trajectory=True)
    paths = solution.trajectory.unflatten(1, (len(updates), -1))
    out = []
    for u, update in enumerate(updates):
        # Which points of a trajectory are used: uniform on 1..N, none twice.
        picks = [
            torch.rand(size, N, generator=generator("cpu", seed, "index", update)).argsort(1)[team.rows(size), :reuse]
            + 1
            for seed in group.seeds
        ]
        n = torch.cat(picks * W).flatten()
        which = torch.arange(len(n), device=device) // reuse
        path = paths[:, u]
        point = lambda index: path[(N - index).to(device), which]
        x_hat = {h: point((n - h).clamp(min=0)) for h in group.horizons}
        cost = solution.evaluations // len(updates)
        out.append(to_batch(group, grid, point(n), n, starts[u].condition[which], x_hat, cost))
    return out


def batches(
    teacher: Teacher, data, group: Group, settings: Settings, device, start: int = 0, team: Team = ALONE
) -> Iterator[tuple[int, Batch]]:
    """Update numbers after `start` with their batches: solved in flight, or ``settings.together`` at a time."""
    if settings.slots:
        yield from batches_in_flight(teacher, data, group, settings, device, start, team)
        return
    size = settings.together
    for first in range(start - start % size + 1, settings.updates + 1, size):
        # A resumed run solves its first chunk whole: other shapes would change the last bits.
        updates = range(first, min(first + size, settings.updates + 1))
        draw = (teacher, data, group, settings.batch, updates, device)
        once = settings.reuse == 1
        solved = zip(updates, draw_batches(*draw, team) if once else reused_batches(*draw, settings.reuse, team))
        yield from ((update, batch) for update, batch in solved if update > start)


def batches_in_flight(
    teacher: Teacher, data, group: Group, settings: Settings, device, start: int = 0, team: Team = ALONE
) -> Iterator[tuple[int, Batch]]:
    """As :func:`batches`, with ``settings.slots`` ODEs in flight, drawn ahead of the update that needs them."""
    grid = Grid(group.intervals, teacher.schedule.T)
    drawn: deque[Starts] = deque()

    def ahead() -> Iterator[Starts]:
        for update in range(start + 1, settings.updates + 1):
            drawn.append(draw_starts(teacher, data, group, settings.batch, update, device, team=team))
            yield drawn[-1]

    solutions = solve_in_flight(teacher, ahead(), group.solver, grid, settings.slots, tuple(group.horizons))
    for update, solution in enumerate(solutions, start + 1):
        s = drawn.popleft()
        yield update, to_batch(group, grid, s.x, s.n, s.condition, solution.at, solution.evaluations)


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
    device = next(students.parameters()).device
    cuda = device.type == "cuda"
    # On a GPU the learning rate is a tensor, so that a captured step reads what it is set to later.
    lr = torch.tensor(settings.lr, device=device) if cuda else settings.lr
    return torch.optim.AdamW(
        students.parameters(),
        lr=lr,
        weight_decay=settings.weight_decay,
        fused=device.type in ("cpu", "cuda"),
        capturable=cuda,
    )


class Update:
    """One update of a group: target, losses, gradients clipped for each member, optimiser step.

    On a GPU the first updates run as they stand and the rest replay one CUDA graph of them: a small network's
    thousands of kernels then cost no time to launch. Not where processes share the batch, students say that they
    cannot (``capturable``), or the optimiser cannot.

    Parameters
    ----------
    bootstrapped : see :func:`horizon_target`. graph : whether to capture; by default where it is possible.
    """

    WARM_UP = 3

    def __init__(
        self,
        students: Students,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        f: ConsistencyFunction,
        bootstrapped: int,
        team: Team = ALONE,
        graph: bool | None = None,
    ):
        self.students, self.optimizer, self.settings, self.f = students, optimizer, settings, f
        self.bootstrapped, self.team = bootstrapped, team
        possible = students.capturable and team.size == 1 and bool(optimizer.defaults.get("capturable"))
        self.wants_graph = possible if graph is None else graph
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        """Make the update at learning rate `lr`; the members' losses (M,)."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        if not self.wants_graph:
            return self._compute(batch)
        self.calls += 1
        if self.calls <= self.WARM_UP:
            # On a stream of its own, as capturing asks for.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loss = self._compute(batch)
            torch.cuda.current_stream().wait_stream(stream)
            return loss
        if self.graph is None:
            self.static = Batch(*(v.clone() if isinstance(v, Tensor) else v for v in self._tensors(batch)))
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.loss = self._compute(self.static)
            self.graph = graph
        for static, value in zip(self._tensors(self.static), self._tensors(batch)):
            if isinstance(static, Tensor):
                static.copy_(value)
        self.graph.replay()
        return self.loss.clone()

    @staticmethod
    def _tensors(batch: Batch) -> list:
        return [getattr(batch, field.name) for field in fields(batch)]

    def _compute(self, batch: Batch) -> Tensor:
        f, students = self.f, self.students
        target = horizon_target(f, students, batch, self.bootstrapped)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in students.parts:
            own = f(students, batch.x[part], batch.t[part], batch.condition[part], members=part)
            losses.append(distance(own, target[part], self.settings.loss))
            students.backward(losses[-1], part)
        loss = torch.cat(losses).detach()
        self.team.average([loss, *(p.grad for p in students.parameters() if p.requires_grad)])
        students.clip_gradients(self.settings.max_norm)
        self.optimizer.step()
        return loss


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
        one that was never interrupted, bit for bit, and with `slots` up to rounding: an ODE may be in another slot.
    team : the processes that share every batch; gradients are averaged over them.

    Raises :class:`InputError` for impossible settings and :class:`TrainingError` when a loss is not finite.
    """
    Grid(group.intervals, teacher.schedule.T)
    get_solver(group.solver)
    for h in group.horizons:
        resolve_horizon(h, group.intervals)
    if settings.reuse > group.intervals:
        raise InputError(f"reuse = {settings.reuse} is not possible; allowed: 1 to intervals = {group.intervals}.")
    if students.size != len(group.members):
        raise InputError(f"{students.size} students were given for a group of {len(group.members)}.")
    optimizer = optimizer or make_optimizer(students, settings)
    device = next(students.parameters()).device
    bootstrapped = sum(m.horizon < group.intervals for m in group.members)

    make = Update(students, optimizer, settings, f, bootstrapped, team)
    for update, batch in batches(teacher, data, group, settings, device, start, team):
        evaluations += team.total(batch.evaluations)
        loss = make(batch, learning_rate(settings, update))
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
            f"update {state.update}; lower lr, or use loss = 'huber' or a smaller guidance."
        )
