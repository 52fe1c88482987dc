"""Many solves in flight: a fixed number of slots, each holding one ODE at its own timestep.

A batch that is solved as one either drags every sample through the steps of its noisiest member or shrinks while it
goes. Here a finished slot is given to the next ODE at once, so the teacher is always called on one full, fixed shape:
what compiled networks and CUDA graphs need. Which slot finishes when follows from the starting points alone, so the
device is never waited for. Solutions are those of :func:`dcm.solvers.solve`, up to rounding. Several processes share one
queue of ODEs, and all take equally many steps: none waits for the long solves of another.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from dcm.schedule import Grid
from dcm.solvers import Solution, get_solver
from dcm.support.cuda_graph import Replay
from dcm.support.errors import InputError
from dcm.support.processes import ALONE, Processes
from dcm.teacher import Teacher, guided_noise


@dataclass(frozen=True)
class Starts:
    """Starting points of ODEs that are solved, and handed out, together."""

    x: Tensor  # (P, *shape)
    n: Tensor  # (P,) integers on the CPU, the grid index of each
    condition: Tensor  # (P,)
    guidance: float | Tensor  # w, one number or (P,)


class Stepper:
    """One solver step for every slot at once, on tensors that stay where they are: on a GPU, one CUDA graph.

    `like` are the first starting points, whose shapes, types and device the slots have. A teacher that can is compiled for
    the batch size `own`. ``x`` (S, *shape), ``n``, ``condition`` and ``guidance`` (S,), or the number 1, are the ODEs in the
    slots of all `processes`, with x = 0 in those of others. ``evaluations`` are this process's in one step.
    """

    def __init__(self, teacher: Teacher, like: Starts, solver: str, grid: Grid, own: int, processes: Processes = ALONE):
        device, slots, self.rows = like.x.device, own * processes.size, processes.rows(own * processes.size)
        self.teacher, self.method, self.grid, self.processes = teacher, get_solver(solver), grid, processes
        self.x = torch.zeros(slots, *like.x.shape[1:], dtype=like.x.dtype, device=device)
        self.n = torch.zeros(slots, dtype=torch.int64, device=device)
        self.condition = like.condition[:1].repeat(slots, *[1] * (like.condition.ndim - 1))
        unguided = isinstance(like.guidance, (int, float)) and like.guidance == 1
        self.guidance = 1 if unguided else torch.ones(slots, dtype=like.x.dtype, device=device)
        self.evaluations = own * self.method.evaluations * (1 if unguided else 2)
        if device.type == "cuda" and hasattr(teacher, "compile_for"):
            teacher.compile_for(own if unguided else 2 * own)
        self.before, self.last = torch.zeros_like(self.n), torch.zeros_like(self.x)  # of the step before
        self.replay = Replay(capture=device.type == "cuda")

    def step(self) -> None:
        """Take one solver step in every slot: x and n move in place."""
        self.replay(self._advance)

    def _advance(self) -> None:
        rows, w = self.rows, self.guidance[self.rows] if isinstance(self.guidance, Tensor) else 1
        n = self.n[rows].clamp(min=1)  # an empty slot computes something that nobody reads
        now, then = self.grid.time(n), self.grid.time(n - 1)
        noise = lambda y, t: guided_noise(self.teacher, y, t, self.condition[rows], w)
        moved = self.method(noise, self.teacher.schedule, self.x[rows], now, then, self.before[rows], self.last[rows])
        for own, new in zip((self.x, self.last, self.n, self.before), (*moved, n - 1, now)):
            own[rows].copy_(new)


class _Flight:
    """Which ODE is in which slot, and what is kept of it. ODEs are numbered in the order of `groups` of `size` each."""

    def __init__(self, stepper: Stepper, groups: Iterator[Starts], size: int, save_at: Sequence[int]):
        self.stepper, self.groups, self.size, self.horizons = stepper, groups, size, np.array(sorted(save_at))
        slots, shape = len(stepper.x), stepper.x.shape[1:]
        # A ring of whole groups. Those not yet handed out are few: a solve lasts about two average ones at most.
        self.ring = size * (4 * -(-slots // size) + 2)
        self.kept = stepper.x.new_empty(len(self.horizons), self.ring, *shape)
        self.ode = np.full(slots, -1)  # number of the ODE in each slot; -1: empty
        self.taken: np.ndarray = np.zeros(slots, dtype=np.int64)  # its steps so far
        self.stops: np.ndarray = np.zeros((slots, len(self.horizons)), dtype=np.int64)  # its steps at each horizon
        self.open: deque[list] = deque()  # [starts, how many are not yet done], oldest first
        self.asked = self.begun = self.handed_out = self.evaluations = 0  # the first three are numbers of ODEs

    def _send(self, values: np.ndarray) -> Tensor:
        tensor, device = torch.from_numpy(np.ascontiguousarray(values)), self.stepper.x.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    def _ask(self) -> bool:
        """Ask for the next group; whether there is one."""
        starts, N = next(self.groups, None), self.stepper.grid.intervals
        if starts is None:
            return False
        if len(starts.x) != self.size:
            raise InputError(f"groups of {self.size} and of {len(starts.x)} starting points were mixed; allowed: one size.")
        if not (1 <= int(starts.n.min()) and int(starts.n.max()) <= N):
            raise InputError(f"grid index n is out of range; allowed: 1 to intervals = {N}.")
        self.open.append([starts, self.size])
        self.asked += self.size
        return True

    def fill(self) -> bool:
        """Give empty slots to the next ODEs, as long as the ring has room; whether any slot is in use then."""
        empty = np.flatnonzero(self.ode < 0)
        while len(empty) and (self.begun < self.asked or self._ask()):
            count = min(len(empty), self.asked - self.begun, self.handed_out + self.ring - self.begun)
            if count == 0:
                break
            self._begin(empty[:count], self.begun + np.arange(count))
            empty, self.begun = empty[count:], self.begun + count
        return bool((self.ode >= 0).any())

    def _begin(self, slots: np.ndarray, odes: np.ndarray) -> None:
        stepper, starts = self.stepper, self.open[-1][0]
        rows: np.ndarray = odes % self.size
        to, of, n = self._send(slots), self._send(rows), starts.n.numpy()[rows]
        stepper.x[to], stepper.condition[to], stepper.n[to] = starts.x[of], starts.condition[of], self._send(n)
        stepper.x[: stepper.rows.start] = stepper.x[stepper.rows.stop :] = stepper.before[to] = 0
        if isinstance(stepper.guidance, Tensor):
            w = starts.guidance
            stepper.guidance[to] = w[of].to(stepper.guidance.dtype) if isinstance(w, Tensor) else float(w)
        self.ode[slots], self.taken[slots] = odes, 0
        self.stops[slots] = np.minimum(self.horizons[None], n[:, None])

    def step(self) -> None:
        """One solver step in every slot; keep what has reached a horizon, and empty the slots that reached the last."""
        self.stepper.step()
        self.evaluations += self.stepper.evaluations
        self.taken += 1
        slot, horizon = np.nonzero((self.stops == self.taken[:, None]) & (self.ode >= 0)[:, None])
        if len(slot):
            place = horizon * self.ring + self.ode[slot] % self.ring
            self.kept.flatten(0, 1)[self._send(place)] = self.stepper.x[self._send(slot)]
        done = np.flatnonzero((self.ode >= 0) & (self.stops[:, -1] == self.taken))
        for group, count in zip(*np.unique((self.ode[done] - self.handed_out) // self.size, return_counts=True)):
            self.open[group][1] -= int(count)
        self.ode[done] = -1

    def finished(self) -> Iterator[Solution]:
        """Hand out the groups that are done, up to the first that is not."""
        last = int(self.horizons[-1])
        while self.open and self.open[0][1] == 0:
            starts, at = self.open.popleft()[0], self.handed_out % self.ring
            kept = dict(zip(self.horizons.tolist(), self.stepper.processes.sum(self.kept[:, at : at + self.size].clone())))
            self.handed_out += self.size
            yield Solution(kept[last], (starts.n - last).clamp(min=0), self.evaluations, kept)
            self.evaluations = 0


@torch.no_grad()
def solve_in_flight(
    teacher: Teacher, groups: Iterable[Starts], solver: str, grid: Grid, slots: int, save_at: tuple[int, ...],
    processes: Processes = ALONE,
) -> Iterator[Solution]:  # fmt: skip
    """Solve ODEs from each starting point towards data as :func:`dcm.solvers.solve`, `slots` of them at any time.

    The `groups`, all of one size, are asked for as slots come free; the teacher is called on S = `slots` samples (2 S with
    guidance), always. Every sample is kept after min(k, n) steps for each horizon k of `save_at`, and none goes further
    than the longest. Each of several `processes` has so many slots, is given the same groups, and is handed all solutions.

    Yields, for each group in turn, a :class:`~dcm.solvers.Solution`. Short solves finish first, but a group is handed
    out only when all of it is done and all before it were: nothing favours short solves, at the beginning or the end.
    ``evaluations`` counts this process's teacher evaluations since the solution before, empty slots included.

    Raises :class:`InputError` for an unknown solver, slots below 1, n outside the grid, or groups of unequal size.
    """
    if slots < 1:
        raise InputError(f"slots = {slots} is out of range; at least 1 is allowed.")
    groups = iter(groups)
    if (first := next(groups, None)) is None:
        return
    flight = _Flight(Stepper(teacher, first, solver, grid, slots, processes), chain([first], groups), len(first.x), save_at)
    while flight.fill():
        flight.step()
        yield from flight.finished()
