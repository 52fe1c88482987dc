"""One update of a group of students."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.horizon import Batch, distance, horizon_target
from dcm.students.lockstep import Students
from dcm.support.cuda_graph import Replay
from dcm.support.processes import ALONE, Processes
from dcm.training.settings import Settings


class Objective(NamedTuple):
    """What an update minimises: the distance of the student's answer to the target. By default the paper's objective.

    Attributes
    ----------
    target : called as :func:`dcm.horizon.horizon_target` is.
    distance : called as :func:`dcm.horizon.distance` is.
    """

    target: Callable[..., Tensor] = horizon_target
    distance: Callable[..., Tensor] = distance


PAPERS = Objective()


class Update:
    """One update of a group: target, losses, gradients clipped for each member, optimiser step.

    On a GPU the first updates run as they stand and the rest replay one CUDA graph of them, captured anew where a horizon
    changes. Not where processes share the batch, students say that they cannot (``capturable``), or the optimiser cannot.

    Parameters
    ----------
    objective : what is minimised.
    graph : whether to capture; by default where it is possible.
    """

    def __init__(
        self,
        students: Students,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        f: ConsistencyFunction,
        processes: Processes = ALONE,
        objective: Objective = PAPERS,
        graph: bool | None = None,
    ):
        self.students, self.optimizer, self.settings, self.f, self.processes = students, optimizer, settings, f, processes
        self.objective = objective
        possible = students.capturable and processes.size == 1 and bool(optimizer.defaults.get("capturable"))
        self.capture = possible if graph is None else graph
        self.static: Batch | None = None  # what a graph reads

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        """Make the update at learning rate `lr`; the members' losses (M,)."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        if not self.capture:
            return self._compute(batch)
        given = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        if self.static is None or self.static.stage != batch.stage:
            self.static = replace(batch, **{name: value.clone() for name, value in given.items()})
            self.replay = Replay(capture=True)
        for name, value in given.items():
            getattr(self.static, name).copy_(value)
        static = self.static
        return self.replay(lambda: self._compute(static)).clone()

    def _compute(self, batch: Batch) -> Tensor:
        f, students = self.f, self.students
        target = self.objective.target(f, students, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss, size = target.new_zeros(students.size), target.shape[1]
        for part, rows in product(students.parts(batch.stage.trained), students.microbatches(size)):
            at = part, rows
            own = f(students, batch.x[at], batch.t[at], batch.condition[at], members=part)
            each = self.objective.distance(own, target[at], self.settings.loss) * (own.shape[1] / size)
            students.backward(each, part)
            loss[part] += each.detach()
        self.processes.average([loss, *(p.grad for p in students.parameters() if p.grad is not None)])
        students.clip_gradients(self.settings.max_norm)
        self.optimizer.step()
        for who, whom in batch.stage.followers:
            loss[who] = loss[whom]
            students.follow(who, whom)
        return loss
