"""Training a UNet teacher: denoising with v-prediction and label dropout, as a generator.

    L = E || v(x_t, t, c) - (alpha_t eps - sigma_t x_0) ||^2,   t uniform on 1..T

(Salimans & Ho 2022, appendix D), with c replaced by the null class in a share of the draws, so that one
network serves classifier-free guidance (Ho & Salimans 2022).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dcm.support.checkpoint import load_optimizer, optimizer_tensors, picked, prefixed
from dcm.support.errors import InputError, TrainingError
from dcm.support.files import read_tensors, write_tensors
from dcm.support.processes import ALONE, Processes
from dcm.support.seeds import generator as seeded
from dcm.teachers.unet import UNetTeacher


class Source(Protocol):
    """Where training images come from; see :mod:`dcm.data.images`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """x_0 (batch, *shape) in [-1, 1] and classes (batch,), on the generator's device."""
        ...


@dataclass(frozen=True)
class TeacherTraining:
    """How a teacher is trained.

    Attributes
    ----------
    updates : optimiser steps; the learning rate follows ``step / updates``.
    seconds : when given, a wall-time budget in place of `updates`; such a run cannot be reproduced exactly.
    batch : images an update and process. learning_rate : Adam's, at its peak.
    warmup : updates of linear warm-up; a cosine to zero follows.
    ema : decay of the weights' exponential moving average, reached gradually.
    label_dropout : share of draws whose class is hidden. clip : largest gradient norm.
    seed : with the step number, decides every draw.
    """

    updates: int = 2000
    seconds: float | None = None
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    label_dropout: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive = {
            "updates": self.updates,
            "batch": self.batch,
            "learning_rate": self.learning_rate,
            "clip": self.clip,
        }
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f"{name} = {value} is out of range; it must be above 0.")
        for name, value in {"ema": self.ema, "label_dropout": self.label_dropout}.items():
            if not 0 <= value < 1:
                raise InputError(f"{name} = {value} is out of range; allowed: 0 up to, not including, 1.")
        if self.warmup < 0 or (self.seconds is not None and not self.seconds > 0):
            raise InputError("warmup must be 0 or more, and seconds above 0.")

    def rate(self, step: int, elapsed: float) -> float:
        """Learning rate of update number `step` (from 0), `elapsed` seconds into the run."""
        progress = min(1.0, elapsed / self.seconds if self.seconds else step / self.updates)
        return self.learning_rate * min(1.0, (step + 1) / (self.warmup + 1)) * (1 + math.cos(math.pi * progress)) / 2

    def over(self, step: int, elapsed: float) -> bool:
        """Whether the run has had its updates, or its time."""
        return elapsed >= self.seconds if self.seconds else step >= self.updates


@dataclass
class TrainingState:
    """What :func:`train_teacher` yields: one object, updated in place.

    Attributes
    ----------
    step : updates done. loss : () tensor, of the last update. learning_rate : used in it.
    elapsed : seconds of training. teacher : being trained. ema : copy with the averaged weights.
    """

    settings: TeacherTraining
    teacher: UNetTeacher
    ema: UNetTeacher
    optimizer: torch.optim.Optimizer
    step: int = 0
    elapsed: float = 0.0
    learning_rate: float = 0.0
    loss: Tensor | None = None
    unchecked: list[Tensor] = field(default_factory=list, repr=False)

    @classmethod
    def start(cls, teacher: UNetTeacher, settings: TeacherTraining) -> TrainingState:
        """Before the first update. `teacher` is trained in place."""
        teacher.train().requires_grad_(True)
        fused = next(teacher.parameters()).device.type == "cuda"
        optimizer = torch.optim.Adam(teacher.parameters(), lr=settings.learning_rate, fused=fused)
        average = UNetTeacher(teacher.config).to(next(teacher.parameters()).device)
        average.load_state_dict(teacher.state_dict())
        average.autocast = teacher.autocast
        return cls(settings, teacher, average.eval().requires_grad_(False), optimizer)

    def check(self) -> None:
        """Raise :class:`TrainingError` if a loss since the last check was not finite.

        Losses are looked at in groups: asking the GPU for each one would make it wait.
        """
        if not self.unchecked:
            return
        finite = torch.stack(self.unchecked).isfinite().cpu()
        first = self.step - len(finite) + 1 + int(finite.int().argmin())
        self.unchecked.clear()
        if not finite.all():
            raise TrainingError(
                f"the teacher's loss was not finite at update {first}; lower learning_rate "
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
        write_tensors(path, tensors, {"step": self.step, "elapsed": self.elapsed, "settings": asdict(self.settings)})

    @classmethod
    def resume(cls, path: Path, teacher: UNetTeacher, settings: TeacherTraining) -> TrainingState:
        """Go on from a checkpoint. Raises :class:`InputError` if it belongs to other settings or another network."""
        tensors, progress = read_tensors(path)
        state = cls.start(teacher, settings)
        try:
            teacher.load_state_dict(picked("teacher", tensors))
            state.ema.load_state_dict(picked("ema", tensors))
        except RuntimeError as error:
            raise InputError(
                f"{path} is no checkpoint of this teacher ({' '.join(str(error).split())[:200]})."
            ) from error
        if progress.get("settings") != asdict(settings):
            raise InputError(
                f"{path} was written with other settings ({progress.get('settings')}); remove it to start anew."
            )
        load_optimizer(state.optimizer, picked("adam", tensors))
        state.step, state.elapsed = progress["step"], progress["elapsed"]
        return state


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
    source: Source,
    settings: TeacherTraining,
    checkpoint: Path | None = None,
    processes: Processes = ALONE,
) -> Iterator[TrainingState]:
    """Train `teacher` in place, yielding the state after each update; the caller logs, saves and draws.

    Starts from `checkpoint` where that file exists. Of several `processes`, each draws images of its own,
    ``settings.batch`` of them, and gradients are averaged.

    Raises :class:`InputError` when source and teacher do not fit each other, :class:`TrainingError` when the loss is
    no longer finite.
    """
    if processes.size > 1 and settings.seconds:
        raise InputError("a time budget is not possible with several processes, whose clocks differ; set updates.")
    if tuple(source.shape) != tuple(teacher.shape):
        raise InputError(f"the images have shape {tuple(source.shape)}, and the teacher needs {tuple(teacher.shape)}.")
    if source.num_classes != teacher.num_classes:
        raise InputError(f"the images have {source.num_classes} classes, and the teacher has {teacher.num_classes}.")
    if checkpoint is not None and Path(checkpoint).exists():
        state = TrainingState.resume(checkpoint, teacher, settings)
    else:
        state = TrainingState.start(teacher, settings)
    device = next(teacher.parameters()).device
    live, averaged = list(teacher.parameters()), list(state.ema.parameters())
    begin = time.monotonic() - state.elapsed
    while not settings.over(state.step, state.elapsed):
        # Draws depend on (seed, step) alone, so that a resumed run repeats them.
        generator = seeded(device, settings.seed, "teacher", state.step, *([processes.rank] if processes.rank else []))
        state.learning_rate = settings.rate(state.step, state.elapsed)
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
        state.loss = loss.detach()
        state.elapsed = time.monotonic() - begin
        state.unchecked.append(state.loss)
        if len(state.unchecked) == 20:
            state.check()
        yield state
    state.check()
