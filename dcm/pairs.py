"""The pairs that students train on: draw n, noise data to x_{t_n}, let the teacher take min(h, n) steps.

One object, :class:`Pairs`, is all that distillation iterates: update numbers with their :class:`~dcm.horizon.Batch`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, tee
from typing import Protocol

import torch
from torch import Tensor

from dcm.horizon import Batch, Group, resolve_horizon
from dcm.schedule import Grid
from dcm.solvers import get_solver, solve
from dcm.solvers_in_flight import Starts, solve_in_flight
from dcm.support.errors import InputError
from dcm.support.processes import ALONE, Processes
from dcm.support.seeds import generator
from dcm.teacher import Teacher


class Data(Protocol):
    """Where x_0 comes from."""

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """x_0 (batch, *shape) and condition (batch,), on the generator's device; the same for the same generator."""
        ...


def check_reuse(pairs_per_trajectory: int, batch: int, intervals: int, solves_in_flight: int = 0) -> None:
    """Raise :class:`InputError` for a number of pairs that trajectories cannot give."""
    if not 1 <= pairs_per_trajectory <= intervals or batch % pairs_per_trajectory:
        allowed = f"divisors of batch = {batch} up to intervals = {intervals}"
        raise InputError(f"pairs_per_trajectory = {pairs_per_trajectory} is not possible; allowed: {allowed}.")
    if pairs_per_trajectory > 1 and solves_in_flight:
        allowed = "0 with pairs_per_trajectory above 1, whose solves all last equally long"
        raise InputError(f"solves_in_flight = {solves_in_flight} is not possible; allowed: {allowed}.")


@dataclass(frozen=True)
class Pairs:
    """Draws and teacher solutions of a group, update after update.

    Attributes
    ----------
    teacher : follows :class:`~dcm.teacher.Teacher`.
    data : follows :class:`Data`.
    group : the students that share the draws.
    batch : samples an update, for each guidance scale and seed.
    device : where they are made.
    updates_per_solve : updates that the teacher solves in one go: fewer, larger calls; changes speed, not results.
    solves_in_flight : when above 0, that many ODEs at any time instead (:mod:`dcm.solvers_in_flight`); speed alone too.
    pairs_per_trajectory : above 1, trajectories start at n = N and each gives pairs at as many of its N points: N solver
        steps for all of them instead of (N + 1) / 2 a pair, at the price of batches with fewer independent images, whose
        points lie on the teacher's path instead of on noised data.
    processes : that share every batch; each trains on its own rows.
    updates : of the whole training; needed where a horizon changes.

    Raises :class:`InputError` for an unknown solver, an impossible grid, horizon or number of pairs, or missing `updates`.
    """

    teacher: Teacher
    data: Data
    group: Group
    batch: int
    device: torch.device | str = "cpu"
    updates_per_solve: int = 1
    solves_in_flight: int = 0
    pairs_per_trajectory: int = 1
    processes: Processes = ALONE
    updates: int = 0

    def __post_init__(self) -> None:
        get_solver(self.group.solver)
        for h in self.group.horizons:
            if not isinstance(resolve_horizon(h, self.grid.intervals), int) and not self.updates:
                raise InputError(f"updates is missing; it must be given where a horizon changes, as {h} does.")
        check_reuse(self.pairs_per_trajectory, self.batch, self.grid.intervals, self.solves_in_flight)

    @property
    def grid(self) -> Grid:
        """The teacher's N intervals."""
        return Grid(self.group.intervals, self.teacher.schedule.T)

    def between(self, start: int, end: int) -> Iterator[tuple[int, Batch]]:
        """Update numbers start + 1 .. end, each with its batch."""
        if self.solves_in_flight:
            yield from self._in_flight(start, end)
            return
        size = self.updates_per_solve
        for first in range(start - start % size + 1, end + 1, size):
            # A resumed run solves its first chunk whole: other shapes would change the last bits.
            updates = range(first, min(first + size, end + 1))
            yield from ((update, batch) for update, batch in zip(updates, self.solved(updates)) if update > start)

    def starts(self, update: int, whole: bool = False) -> Starts:
        """Starting points of one update for every guidance scale and seed: (W S B / pairs_per_trajectory), in that order.

        What is drawn depends on (seed, update) alone. B are this process's rows, or the `whole` batch.
        """
        group, grid, device, draws = self.group, self.grid, self.device, []
        count = self.batch // self.pairs_per_trajectory
        for seed in group.seeds:
            x_0, condition = self.data.draw(generator(device, seed, "data", update), count)
            noise = torch.randn(x_0.shape, generator=generator(device, seed, "noise", update), device=device)
            n = torch.randint(1, grid.intervals + 1, (count,), generator=generator("cpu", seed, "index", update))
            n = n if self.pairs_per_trajectory == 1 else torch.full_like(n, grid.intervals)
            x = self.teacher.schedule.add_noise(x_0, noise, grid.time(n).to(device))
            draws.append([v[slice(count) if whole else self.processes.rows(count)] for v in (x, n, condition)])
        # Every guidance scale solves from the same points.
        W = len(group.guidance)
        x, n, condition = (torch.cat(column * W) for column in zip(*draws))
        w = group.guidance[0] if W == 1 else torch.tensor(group.guidance, device=device).repeat_interleave(len(x) // W)
        return Starts(x, n, condition, w)

    def solved(self, updates: Sequence[int]) -> list[Batch]:
        """The batches of the given update numbers, their teacher solves done together."""
        starts, group, reused = [self.starts(update) for update in updates], self.group, self.pairs_per_trajectory > 1
        x, n, condition = (torch.cat([getattr(s, name) for s in starts]) for name in ("x", "n", "condition"))
        w, size, out = starts[0].guidance, len(starts[0].x), []
        wanted = tuple(sorted({h for update in updates for h in group.stage(update, self.updates).horizons}))
        longest = self.grid.intervals if reused else wanted[-1]
        solution = solve(
            self.teacher, x, n, condition, w.repeat(len(starts)) if isinstance(w, Tensor) else w, group.solver, self.grid,
            longest, () if reused else wanted, trajectory=reused,
        )  # fmt: skip
        steps = [int(s.n.clamp(max=longest).sum()) for s in starts]
        each = solution.evaluations / max(1, sum(steps))
        for u, (update, own) in enumerate(zip(updates, starts)):
            rows = slice(u * size, (u + 1) * size)
            x_hat = {h: x[rows] for h, x in solution.at.items()}
            if reused:
                own, x_hat = self._along(update, own, solution.trajectory[:, rows])
            out.append(self.batch_of(update, own, x_hat, round(each * steps[u])))
        return out

    def _along(self, update: int, starts: Starts, path: Tensor) -> tuple[Starts, dict[int, Tensor]]:
        """Several pairs from each trajectory: points on the `path` (N + 1, P, *shape), and the points h steps on."""
        N, group, reuse, device = self.grid.intervals, self.group, self.pairs_per_trajectory, self.device
        count = self.batch // reuse
        # Which points are used: uniform on 1..N, none twice from one trajectory.
        drawn = [torch.rand(count, N, generator=generator("cpu", s, "index", update)) for s in group.seeds]
        picks = [d.argsort(1)[self.processes.rows(count), :reuse] + 1 for d in drawn]
        n = torch.cat(picks * len(group.guidance)).flatten()
        which = torch.arange(len(n), device=device) // reuse
        point = lambda index: path[(N - index).to(device), which]
        x_hat = {h: point((n - h).clamp(min=0)) for h in group.stage(update, self.updates).horizons}
        return Starts(point(n), n, starts.condition[which], starts.guidance), x_hat

    def _in_flight(self, start: int, end: int) -> Iterator[tuple[int, Batch]]:
        """As :meth:`between`; starting points are drawn ahead of the update that needs them, up to a switch."""
        group, team = self.group, self.processes
        horizons = lambda update: tuple(sorted(set(group.stage(update, self.updates).horizons)))
        for wanted, updates in groupby(range(start + 1, end + 1), horizons):
            here, coming = tee(updates)
            ahead, drawn = tee(map(partial(self.starts, whole=True), coming))
            solutions = solve_in_flight(self.teacher, ahead, group.solver, self.grid, self.solves_in_flight, wanted, team)
            for update, starts, solution in zip(here, drawn, solutions):
                yield update, self.batch_of(update, starts, solution.at, solution.evaluations, team.rows(self.batch))

    def batch_of(self, update: int, starts: Starts, x_hat: dict[int, Tensor], evaluations: int, rows=slice(None)) -> Batch:
        """The batch of all members, or some `rows` of it.

        `starts` are for every guidance scale and seed, (W S B); ``x_hat[h]`` (W S B, *shape) is where the teacher brought
        them in min(h, n) steps, which took so many `evaluations`.
        """
        group, grid, n, device = self.group, self.grid, starts.n, starts.x.device
        stage, M = group.stage(update, self.updates), len(group.members)
        members = lambda parts: torch.cat(parts).unflatten(0, (M, -1))[:, rows]  # (W S B, ...) by horizon -> (M, B, ...)
        once = starts.x, grid.time(n).to(device), starts.condition
        x, t, condition = (members([v] * len(stage.horizons)) for v in once)
        t_hat = members([grid.time((n - h).clamp(min=0)).to(device) for h in stage.horizons])
        return Batch(x, t, condition, members([x_hat[h] for h in stage.horizons]), t_hat, evaluations, stage)
