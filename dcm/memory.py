"""GPU memory that training adapters needs, known before it starts: measured on one and two samples, then extrapolated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dcm.errors import InputError
from dcm.lora import LoRAStudents

GIB = 2**30
SLACK = 1.05  # the allocator's fragments and the libraries' workspaces


@dataclass(frozen=True)
class Need:
    """Bytes of GPU memory at the peak of an update.

    Attributes
    ----------
    held : weights and whatever else lies there before training. one, two : peak while one member walks back one
    sample, or two. state : see :func:`training_state`. samples : walked back at once.
    """

    held: int
    one: int
    two: int
    state: int
    samples: int

    @property
    def total(self) -> int:
        """Activations grow in proportion to the samples; the rest does not."""
        return int(SLACK * (self.one + (self.samples - 1) * (self.two - self.one) + self.state))


def training_state(students: LoRAStudents, parameters) -> int:
    """Bytes of the gradients of all members but one, of Adam's two moments (8 bit: a byte each) and of averages."""
    size = sum(p.numel() for p in students.parameters())
    moments = size * (2 if parameters.optimizer == "adamw8bit" else 8)
    return size * 4 * (students.size - 1) // students.size + moments + (size * 4 if parameters.ema else 0)


def peak(students: LoRAStudents, shape: tuple[int, ...], samples: int) -> int:
    """Peak bytes on the GPU while the first member's graph of `samples` samples is built and walked back."""
    device = students.network.device
    x = torch.zeros(1, samples, *shape, device=device)
    t, condition = (torch.ones(1, samples, dtype=torch.long, device=device) for _ in range(2))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    part = slice(0, 1)
    students.backward(students(x, t, condition, members=part).square().mean()[None], part)
    most = torch.cuda.max_memory_allocated(device)
    students.zero_grad(set_to_none=True)
    return most


def needed(students: LoRAStudents, shape: tuple[int, ...], batch: int, parameters, peak=peak) -> Need:
    """What an update of `batch` samples a process needs; takes seconds. `peak` measures, as :func:`peak` does.

    `parameters` has ``optimizer`` and ``ema``, as :class:`dcm.parameters.TrainingParameters`.

    Raises :class:`InputError` when not even two samples fit.
    """
    samples = min(batch, students.microbatch or batch)
    held = torch.cuda.memory_allocated(students.network.device) if torch.cuda.is_available() else 0
    try:
        one, two = peak(students, shape, 1), peak(students, shape, 2)
    except torch.OutOfMemoryError:
        raise InputError(
            f"the GPU's memory does not hold two samples ({held / GIB:.1f} GiB of it are weights); lower resolution, "
            "set gradient_checkpointing to true, or take a larger GPU."
        ) from None
    return Need(held, one, two, training_state(students, parameters), samples)


def check(need: Need, available: int, parameters) -> None:
    """Raise :class:`InputError` when `need` exceeds the `available` bytes, naming the settings that lower it."""
    if need.total <= available:
        return
    p, lower = parameters, []
    if not p.gradient_checkpointing:
        lower.append("gradient_checkpointing = true")
    if need.samples > 1:
        lower.append(f"microbatch below {need.samples}")
    if p.optimizer != "adamw8bit":
        lower.append("optimizer = 'adamw8bit'")
    if p.ema:
        lower.append("ema = 0")
    lower += ["fewer horizons, guidance scales and seeds in a group", f"width below {p.width}", "a lower resolution"]
    raise InputError(
        f"training needs about {need.total / GIB:.1f} GiB of GPU memory, and {available / GIB:.1f} GiB can be had; "
        f"it is lowered by {', '.join(lower)}."
    )


def available(device: torch.device) -> int:
    """Bytes that this process may use in all: what is free, and what it holds already."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
