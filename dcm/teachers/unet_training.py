"""Training a UNet teacher: denoising with v-prediction and label dropout, as a generator.

    L = E || v(x_t, t, c) - (alpha_t eps - sigma_t x_0) ||^2,   t uniform on 1..T

(Salimans & Ho 2022, appendix D), with c replaced by the null class in a share of the draws, so that one
network serves classifier-free guidance (Ho & Salimans 2022).
"""

import json
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dcm.support.checkpoint import load_optimizer, optimizer_tensors, picked, prefixed, read_checkpoint
from dcm.support.errors import TrainingError, last_good
from dcm.support.files import write_tensors
from dcm.support.processes import ALONE, Processes
from dcm.support.seeds import generator
from dcm.teachers.unet import UNetTeacher

CHECKPOINT_SECONDS, CPU = 60.0, torch.device("cpu")

@dataclass(frozen=True)
class TeacherTraining:
    """How a teacher is trained."""

    updates: int = 2000  # optimiser steps
    batch: int = 128  # images an update and process
    learning_rate: float = 1e-3  # Adam's, at its peak
    warmup: int = 100  # updates of linear warm-up; a cosine to zero follows
    ema: float = 0.999  # decay of the weights' exponential moving average, reached gradually
    label_dropout: float = 0.1  # share of draws whose class is hidden
    clip: float = 1.0  # largest gradient norm
    seed: int = 0  # with the step number, decides every draw

    def rate(self, step: int) -> float:
        """Learning rate of update number `step` (from 0)."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        return self.learning_rate * warm * (1 + math.cos(math.pi * min(1.0, step / self.updates))) / 2


class TrainingState:
    """What :func:`train_teacher` yields: one object, updated in place.

    ``ema`` has the averaged weights. ``step`` updates are done, in ``elapsed`` seconds, the last with ``learning_rate`` and
    ``loss``, ().
    """

    loss: Tensor

    def __init__(self, teacher: UNetTeacher, settings: TeacherTraining, checkpoint: Path | None = None):
        self.settings, self.checkpoint, self.learning_rate = settings, checkpoint, 0.0
        self.ema = deepcopy(teacher).eval().requires_grad_(False)
        self.teacher = teacher.train().requires_grad_(True)
        self.device = next(teacher.parameters()).device
        self.optimizer = torch.optim.Adam(teacher.parameters(), settings.learning_rate, fused=self.device.type == "cuda")
        self.unchecked: dict[int, Tensor] = {}  # losses by step
        # What must be equal for a checkpoint to be gone on with; as JSON has it, with lists for tuples.
        self.identity = json.loads(json.dumps({"settings": asdict(settings), "network": asdict(teacher.config)}))
        tensors, about = read_checkpoint(checkpoint, self.identity, CPU, costly=True) if checkpoint else ({}, {})
        if tensors:
            self.teacher.load_state_dict(picked("teacher", tensors))
            self.ema.load_state_dict(picked("ema", tensors))
            load_optimizer(self.optimizer, picked("adam", tensors))
        self.step = self.saved = about.get("step", 0)
        self.elapsed = about.get("elapsed", 0.0)

    def check(self) -> None:
        """Raise :class:`TrainingError` for a loss that is not finite; of several at once, since a GPU waits when asked."""
        bad = next((step for step, loss in self.unchecked.items() if not loss.isfinite()), None)
        self.unchecked.clear()
        if bad:
            raise TrainingError(
                f"the teacher's loss was not finite at update {bad}; lower learning_rate (now {self.settings.learning_rate})"
                f" or lengthen warmup (now {self.settings.warmup}). {last_good(self.checkpoint, self.saved)}"
            )

    def save(self, path: Path) -> None:
        """Write a checkpoint, from which training goes on exactly."""
        self.check()
        networks = prefixed("teacher", self.teacher.state_dict()) | prefixed("ema", self.ema.state_dict())
        about = {"identity": self.identity, "step": self.step, "elapsed": self.elapsed}
        write_tensors(path, networks | prefixed("adam", optimizer_tensors(self.optimizer)), about)
        self.saved = self.step


def train_teacher(
    teacher: UNetTeacher, source, settings: TeacherTraining, checkpoint: Path | None = None, processes: Processes = ALONE
) -> Iterator[TrainingState]:
    """Train `teacher` in place, yielding the state after each update; the caller logs and draws.

    The `source` of images that the teacher suits is an :class:`~dcm.data.images.ImageSet`, or what has its ``draw``.
    Goes on from the file `checkpoint`, where it exists, and writes it once a minute. Each of the `processes` draws
    ``settings.batch`` images of its own, and gradients are averaged.
    Raises :class:`TrainingError` when the loss is no longer finite, :class:`InputError` for a checkpoint of other settings.
    """
    state, schedule = TrainingState(teacher, settings, checkpoint), teacher.schedule
    live, averaged = list(teacher.parameters()), list(state.ema.parameters())
    written = time.monotonic()
    begin = written - state.elapsed
    while state.step < settings.updates:
        # Draws depend on (seed, step) alone, so that a resumed run repeats them.
        own = [processes.rank] if processes.rank else []
        g = generator(state.device, settings.seed, "teacher", state.step, *own)
        state.learning_rate = state.optimizer.param_groups[0]["lr"] = settings.rate(state.step)
        x_0, condition = source.draw(g, settings.batch)
        t = torch.randint(1, schedule.T + 1, (len(x_0),), generator=g, device=state.device)
        noise = torch.randn(x_0.shape, generator=g, device=state.device)
        hidden = torch.rand(len(x_0), generator=g, device=state.device) < settings.label_dropout
        condition = torch.where(hidden, teacher.null_condition(condition), condition)
        v = schedule.alpha(t, x_0) * noise - schedule.sigma(t, x_0) * x_0
        loss = (teacher.output(schedule.add_noise(x_0, noise, t), t, condition) - v).square().mean()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.average([p.grad for p in live])
        torch.nn.utils.clip_grad_norm_(live, settings.clip)
        state.optimizer.step()
        # Early averages follow the weights closely; the decay rises to its full value.
        decay = min(settings.ema, (1 + state.step) / (10 + state.step))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, live, 1 - decay)
        state.step += 1
        state.loss, state.elapsed = loss.detach(), time.monotonic() - begin
        state.unchecked[state.step] = state.loss
        if len(state.unchecked) == 20:
            state.check()
        if checkpoint and processes.first and time.monotonic() - written > CHECKPOINT_SECONDS:
            state.save(checkpoint)
            written = time.monotonic()
        yield state
    state.check()
