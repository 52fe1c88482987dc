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
    """One update of a group: target, losses and gradients; their mean over the processes; clipping and optimiser step.

    On a GPU the first updates run as they stand. Later ones replay two CUDA graphs, captured anew where a horizon changes:
    one up to the gradients, where students can (``capturable``), and one of the optimiser's part, where they
    (``clips_on_device``) and the optimiser can.

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
        self.parameters = list(students.parameters())
        possible = self.parameters[0].is_cuda and students.capturable
        self.capture = possible if graph is None else graph
        self.capture_step = self.capture and students.clips_on_device and bool(optimizer.defaults.get("capturable"))
        self.static: Batch | None = None  # what the graphs read
        self.gradients, self.step = Replay(False), Replay(False)

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        """Make the update at learning rate `lr`; the members' losses (M,)."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        if self.capture:
            batch = self._held(batch)
        loss, gradients = self.gradients(lambda: self._gradients(batch))
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient  # clipping may have dropped it
        self.processes.average([loss, *(g for g in gradients if g is not None)])
        self.step(lambda: self._step(batch, loss))
        return loss.clone()

    def _held(self, batch: Batch) -> Batch:
        """The same on tensors that stay where they are; new ones, and new graphs, at another stage."""
        given = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        if self.static is None or self.static.stage != batch.stage:
            self.static = replace(batch, **{name: value.clone() for name, value in given.items()})
            self.gradients, self.step = Replay(self.capture), Replay(self.capture_step)
        for name, value in given.items():
            getattr(self.static, name).copy_(value)
        return self.static

    def _gradients(self, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
        """Losses (M,) and the gradients of all parameters, None where none trains."""
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
        return loss, [p.grad for p in self.parameters]

    def _step(self, batch: Batch, loss: Tensor) -> None:
        """Clip, take the optimiser's step, and let who follows another take over its weights and `loss`."""
        self.students.clip_gradients(self.settings.max_norm)
        self.optimizer.step()
        for who, whom in batch.stage.followers:
            loss[who] = loss[whom]
            self.students.follow(who, whom)
