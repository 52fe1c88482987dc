"""How students train."""

from dataclasses import dataclass, fields

import torch

from dcm.parameters.notebooks import TrainingParameters
from dcm.students.lockstep import Students
from dcm.support.errors import InputError


def _usual(name: str):
    """The default that parameters have, stated once."""
    return TrainingParameters.model_fields[name].default


@dataclass(frozen=True)
class Settings:
    """How students train."""

    updates: int
    lr: float = _usual("lr")
    lr_decay: str = _usual("lr_decay")  # constant, or linear to zero over the last half
    weight_decay: float = _usual("weight_decay")  # AdamW's
    max_norm: float = _usual("max_norm")  # gradient clipping, for each student
    loss: str = _usual("loss")  # see dcm.horizon.distance
    # Where the horizon of any student changes, whether optimiser and average of weights ``continue`` or ``restart``: of all
    # students, so that those that go on from equal weights differ in the objective alone.
    at_switch: str = _usual("at_switch")
    optimizer: str = _usual("optimizer")  # adamw, or adamw8bit: bitsandbytes', whose state takes a quarter of the memory

    @classmethod
    def of(cls, parameters: TrainingParameters) -> "Settings":
        """Those among a notebook's parameters."""
        return cls(**{f.name: getattr(parameters, f.name) for f in fields(cls)})


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
    cuda, fused = device.type == "cuda", device.type in ("cpu", "cuda")
    # On a GPU the learning rate is a tensor, so that a captured step reads what it is set to later.
    lr = torch.tensor(settings.lr, device=device) if cuda else settings.lr
    return torch.optim.AdamW(
        students.parameters(), lr, weight_decay=settings.weight_decay, fused=fused, capturable=cuda
    )
