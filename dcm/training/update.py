"""One update of a group of students."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.horizon import Batch, distance, horizon_target
from dcm.students.lockstep import Students
from dcm.support.processes import ALONE, Processes
from dcm.training.settings import Settings


class Update:
    """One update of a group: target, losses, gradients clipped for each member, optimiser step.

    On a GPU the first updates run as they stand and the rest replay one CUDA graph of them: a small network's
    thousands of kernels then cost no time to launch. Not where processes share the batch, students say that they
    cannot (``capturable``), or the optimiser cannot.

    Parameters
    ----------
    graph : whether to capture; by default where it is possible. Where a horizon changes it is captured anew.
    """

    WARM_UP = 3

    def __init__(
        self,
        students: Students,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        f: ConsistencyFunction,
        processes: Processes = ALONE,
        graph: bool | None = None,
    ):
        self.students, self.optimizer, self.settings, self.f = students, optimizer, settings, f
        self.processes = processes
        possible = students.capturable and processes.size == 1 and bool(optimizer.defaults.get("capturable"))
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
        if self.graph is None or self.static.bootstrapped != batch.bootstrapped:
            self.graph = None  # first, so that its memory is free
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
        target = horizon_target(f, students, batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in students.parts:
            own = f(students, batch.x[part], batch.t[part], batch.condition[part], members=part)
            losses.append(distance(own, target[part], self.settings.loss))
            students.backward(losses[-1], part)
        loss = torch.cat(losses).detach()
        self.processes.average([loss, *(p.grad for p in students.parameters() if p.requires_grad)])
        students.clip_gradients(self.settings.max_norm)
        self.optimizer.step()
        return loss
