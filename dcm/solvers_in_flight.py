"""Solving many ODEs in flight: a fixed number of slots, each at its own timestep.

A batch that is solved as one either drags every sample through the steps of its noisiest member or shrinks while it
goes. Here a finished slot is given to the next ODE at once, so the teacher is always called on one full, fixed shape:
what compiled networks and CUDA graphs need. Which slot finishes when follows from the starting points alone, so the
device is never waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcm.schedule import Grid
from dcm.solvers import Solution, get_solver
from dcm.support.errors import InputError
from dcm.teacher import Teacher, guided_noise


@dataclass(frozen=True)
class Starts:
    """Starting points of ODEs that are solved, and handed out, together.

    Attributes
    ----------
    x : (P, *shape). n : (P,) integers on the CPU, grid indices. condition : (P,). guidance : w, one number or (P,).
    """

    x: Tensor
    n: Tensor
    condition: Tensor
    guidance: float | Tensor

    @staticmethod
    def joined(starts: Sequence[Starts]) -> Starts:
        """Several as one, in their order."""
        x, n, condition = (torch.cat([getattr(s, name) for s in starts]) for name in ("x", "n", "condition"))
        w = starts[0].guidance
        return Starts(x, n, condition, w.repeat(len(starts)) if isinstance(w, Tensor) else w)


class Stepper:
    """One solver step for every slot at once, on tensors that stay where they are.

    Parameters
    ----------
    like : the first starting points; shapes, types and device are theirs. slots : S.
    graph : replay the step as one CUDA graph; by default wherever there is a GPU, where a teacher that can is also
    compiled for this one batch size.

    Attributes
    ----------
    x : (S, *shape). n : (S,), grid index of each slot. condition, guidance : (S,), or one number w = 1.
    """

    def __init__(self, teacher: Teacher, like: Starts, solver: str, grid: Grid, slots: int, graph: bool | None = None):
        device = like.x.device
        self.teacher, self.method, self.grid = teacher, get_solver(solver), grid
        self.x = torch.zeros(slots, *like.x.shape[1:], dtype=like.x.dtype, device=device)
        self.n = torch.zeros(slots, dtype=torch.int64, device=device)
        self.condition = like.condition[:1].repeat(slots, *[1] * (like.condition.ndim - 1))
        w = like.guidance
        unguided = isinstance(w, (int, float)) and w == 1
        self.guidance = 1 if unguided else torch.ones(slots, dtype=like.x.dtype, device=device)
        # teacher evaluations of one step: every slot, every stage, both halves of the guidance
        self.evaluations = slots * self.method.evaluations * (1 if unguided else 2)
        if device.type == "cuda" and hasattr(teacher, "compile_for"):
            teacher.compile_for(slots if unguided else 2 * slots)
        self.wants_graph = device.type == "cuda" if graph is None else graph
        self.graph, self.calls = None, 0

    def _advance(self) -> None:
        n = self.n.clamp(min=1)  # an empty slot computes something that nobody reads
        now, then = self.grid.time(n), self.grid.time(n - 1)
        noise = lambda y, t: guided_noise(self.teacher, y, t, self.condition, self.guidance)
        self.x.copy_(self.method.step(noise, self.teacher.schedule, self.x, now, then))
        self.n.copy_(n - 1)

    def step(self) -> None:
        """Take one solver step in every slot: x and n move in place."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self._advance()
            self.calls += 1
            if self.wants_graph and self.calls == 3:  # compiled and warmed up by now
                self._capture()

    def _capture(self) -> None:
        x, n = self.x.clone(), self.n.clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        self.graph = graph
        self.x.copy_(x), self.n.copy_(n)


@torch.no_grad()
def solve_in_flight(
    teacher: Teacher,
    groups: Iterable[Starts],
    solver: str,
    grid: Grid,
    slots: int,
    save_at: tuple[int, ...],
    graph: bool | None = None,
) -> Iterator[Solution]:
    """Solve ODEs from each starting point towards data, `slots` of them at any time, in the order of `groups`.

    Parameters
    ----------
    groups : any number of :class:`Starts` of one size; they are asked for as slots come free.
    slots : ODEs in flight, S; the teacher is called on S samples (2 S with guidance), always.
    save_at : horizons k: every sample is kept after min(k, n) steps, and none goes further than the longest.

    Yields, for each group in turn, a :class:`~dcm.solvers.Solution`. Short solves finish first, but a group is handed
    out only when all of it is done and all before it were: nothing favours short solves, at the beginning or the end.
    ``evaluations`` counts the teacher evaluations since the solution before, empty slots included.

    Raises :class:`InputError` for an unknown solver, slots below 1, n outside the grid, or groups of unequal size.
    """
    if slots < 1:
        raise InputError(f"slots = {slots} is out of range; at least 1 is allowed.")
    groups, horizons = iter(groups), np.array(sorted(save_at))
    first = next(groups, None)
    if first is None:
        return
    stepper, size, device = Stepper(teacher, first, solver, grid, slots, graph), len(first.x), first.x.device
    # A ring of whole groups. Those not yet handed out are few: a solve lasts about two average ones at most.
    ring = size * (4 * -(-slots // size) + 2)
    saved = torch.empty(len(horizons), ring, *first.x.shape[1:], dtype=first.x.dtype, device=device)
    flat = saved.view(-1, *first.x.shape[1:])

    def send(values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    def check(starts: Starts) -> Starts:
        if len(starts.x) != size:
            raise InputError(f"groups of {size} and of {len(starts.x)} starting points were mixed; allowed: one size.")
        if not (1 <= int(starts.n.min()) and int(starts.n.max()) <= grid.intervals):
            raise InputError(f"grid index n is out of range; allowed: 1 to intervals = {grid.intervals}.")
        return starts

    taken: np.ndarray = np.zeros(slots, dtype=np.int64)  # steps so far
    stops: np.ndarray = np.zeros(
        (slots, len(horizons)), dtype=np.int64
    )  # steps after which each horizon's sample is kept
    place = np.full(slots, -1)  # in the ring; -1: empty
    open_groups: deque[list] = deque()  # [starts, samples not yet done], oldest first
    source: Starts | None = check(first)
    used, admitted, handed_out, evaluations = 0, 0, 0, 0
    open_groups.append([source, size])

    while True:
        # Give empty slots to the next starting points, as long as the ring has room.
        empty = np.flatnonzero(place < 0)
        while source is not None and len(empty):
            room = ring - (admitted - handed_out)
            count = min(len(empty), size - used, room)
            if count == 0:
                break
            rows, chosen, empty = np.arange(used, used + count), empty[:count], empty[count:]
            to, of = send(chosen), send(rows)
            stepper.x[to], stepper.condition[to] = source.x[of], source.condition[of]
            stepper.n[to] = send(source.n.numpy()[rows])
            if isinstance(stepper.guidance, Tensor):
                w = source.guidance
                stepper.guidance[to] = w[of].to(stepper.guidance.dtype) if isinstance(w, Tensor) else float(w)
            taken[chosen], place[chosen] = 0, (admitted + np.arange(count)) % ring
            stops[chosen] = np.minimum(horizons[None], source.n.numpy()[rows, None])
            used, admitted = used + count, admitted + count
            if used == size:
                source = next(groups, None)
                used = 0
                if source is not None:
                    open_groups.append([check(source), size])

        if (place < 0).all():
            return
        stepper.step()
        evaluations += stepper.evaluations
        taken += 1

        # Keep what has reached a horizon, and free the slots that have reached the last one.
        slot, horizon = np.nonzero((stops == taken[:, None]) & (place >= 0)[:, None])
        if len(slot):
            flat[send(horizon * ring + place[slot])] = stepper.x[send(slot)]
        done = np.flatnonzero((place >= 0) & (stops[:, -1] == taken))
        age = (place[done] - handed_out) % ring // size
        for k, finished in zip(*np.unique(age, return_counts=True)):
            open_groups[k][1] -= int(finished)
        place[done] = -1
        while open_groups and open_groups[0][1] == 0:
            starts, _ = open_groups.popleft()
            at = handed_out % ring
            kept = {int(k): saved[i, at : at + size].clone() for i, k in enumerate(horizons)}
            handed_out += size
            yield Solution(kept[int(horizons[-1])], (starts.n - int(horizons[-1])).clamp(min=0), evaluations, kept)
            evaluations = 0
