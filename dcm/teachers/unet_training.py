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
from dcm.support.errors import TrainingError
from dcm.support.files import write_tensors
from dcm.support.processes import ALONE, Processes
from dcm.support.seeds import generator as seeded
from dcm.teachers.unet import UNetTeacher


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

    ``teacher`` is being trained, ``ema`` a copy with the averaged weights. ``step`` counts the updates done, which took
    ``elapsed`` seconds; ``learning_rate`` and ``loss``, (), are those of the last.
    """

    loss: Tensor

    def __init__(self, teacher: UNetTeacher, settings: TeacherTraining):
        self.settings, self.step, self.elapsed, self.learning_rate = settings, 0, 0.0, 0.0
        self.ema = deepcopy(teacher).eval().requires_grad_(False)
        self.teacher = teacher.train().requires_grad_(True)
        self.device = next(teacher.parameters()).device
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(teacher.parameters(), lr=settings.learning_rate, fused=fused)
        self.unchecked: dict[int, Tensor] = {}  # losses by step
        # What must be equal for a checkpoint to be gone on with; as JSON has it, with lists for tuples.
        self.identity = json.loads(json.dumps({"settings": asdict(settings), "network": asdict(teacher.config)}))

    def check(self) -> None:
        """Raise :class:`TrainingError` if a loss since the last check was not finite.

        Losses are looked at in groups: asking the GPU for each one at once would make it wait.
        """
        bad = next((step for step, loss in self.unchecked.items() if not loss.isfinite()), None)
        self.unchecked.clear()
        if bad:
            raise TrainingError(
                f"the teacher's loss was not finite at update {bad}; lower learning_rate "
                f"(now {self.settings.learning_rate}) or lengthen warmup (now {self.settings.warmup})."
            )

    def save(self, path: Path) -> None:
        """Write a checkpoint from which :meth:`resume` goes on exactly."""
        self.check()
        tensors = (
            prefixed("teacher", self.teacher.state_dict())
            | prefixed("ema", self.ema.state_dict())
            | prefixed("adam", optimizer_tensors(self.optimizer))
        )
        write_tensors(path, tensors, {"identity": self.identity, "step": self.step, "elapsed": self.elapsed})

    def resume(self, path: Path) -> None:
        """Go on from a whole checkpoint, if there is one; raises :class:`InputError` for one of other settings."""
        tensors, about = read_checkpoint(path, self.identity, torch.device("cpu"), costly=True)
        if tensors:
            self.teacher.load_state_dict(picked("teacher", tensors))
            self.ema.load_state_dict(picked("ema", tensors))
            load_optimizer(self.optimizer, picked("adam", tensors))
            self.step, self.elapsed = about["step"], about["elapsed"]


def velocity_loss(
    teacher: UNetTeacher, x_0: Tensor, condition: Tensor, generator: torch.Generator, dropout: float
) -> Tensor:
    """The loss above, averaged over a batch: `x_0` (B, *shape), `condition` (B,); returns ()."""
    like = {"generator": generator, "device": x_0.device}
    t = torch.randint(1, teacher.schedule.T + 1, (len(x_0),), **like)
    noise = torch.randn(x_0.shape, **like)
    hidden = torch.rand(len(x_0), **like) < dropout
    condition = torch.where(hidden, teacher.null_condition(condition), condition)
    target = teacher.schedule.alpha(t, x_0) * noise - teacher.schedule.sigma(t, x_0) * x_0
    return (teacher.velocity(teacher.schedule.add_noise(x_0, noise, t), t, condition) - target).square().mean()


def train_teacher(
    teacher: UNetTeacher,
    source,
    settings: TeacherTraining,
    checkpoint: Path | None = None,
    processes: Processes = ALONE,
) -> Iterator[TrainingState]:
    """Train `teacher` in place, yielding the state after each update; the caller logs, saves and draws.

    The `source` of images that the teacher suits is an :class:`~dcm.data.images.ImageSet`, or what has its ``draw``.
    Goes on from the file `checkpoint`, where it exists. Each of the `processes` draws images of its own,
    ``settings.batch`` of them, and gradients are averaged. Raises :class:`TrainingError` when the loss is no longer finite.
    """
    state = TrainingState(teacher, settings)
    if checkpoint is not None:
        state.resume(checkpoint)
    live, averaged = list(teacher.parameters()), list(state.ema.parameters())
    begin = time.monotonic() - state.elapsed
    while state.step < settings.updates:
        # Draws depend on (seed, step) alone, so that a resumed run repeats them.
        own = [processes.rank] if processes.rank else []
        generator = seeded(state.device, settings.seed, "teacher", state.step, *own)
        state.learning_rate = settings.rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = state.learning_rate
        x_0, condition = source.draw(generator, settings.batch)
        loss = velocity_loss(teacher, x_0, condition, generator, settings.label_dropout)
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
        yield state
    state.check()
