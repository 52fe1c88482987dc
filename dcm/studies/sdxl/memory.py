"""GPU memory that training adapters needs, known before it starts: measured on a few samples, then extrapolated."""

from dataclasses import dataclass

import torch

from dcm.students.lora import LoRAStudents
from dcm.support.errors import InputError

GIB = 2**30
SLACK = 1.05  # the allocator's fragments and the libraries' workspaces
PROBED = 4  # samples of the larger measurement; the smaller has one


@dataclass(frozen=True)
class Need:
    """Bytes of GPU memory at the peak of an update."""

    peaks: dict[int, int]  # by number of samples, while one member's graph is built and walked back
    state: int  # gradients of all members but one, Adam's two moments (8 bit: a byte each), averages
    samples: int  # walked back at once
    teacher: int = 0  # what a sample takes that the teacher evaluates
    flying: int = 0  # of those in flight, whose memory is its CUDA graph's

    @property
    def total(self) -> int:
        """Activations grow in proportion to the samples; the rest does not."""
        few, many = min(self.peaks), max(self.peaks)
        each = (self.peaks[many] - self.peaks[few]) / max(1, many - few)
        return int(SLACK * (self.peaks[few] + (self.samples - few) * each + self.state + self.flying * self.teacher))


def peak(students: LoRAStudents, shape: tuple[int, ...], samples: int, trained: bool = True) -> int:
    """Peak bytes while the first member's graph of `samples` samples is built and walked back, or, not `trained`, while it answers."""
    device, part = students.network.device, slice(0, 1)
    x = torch.zeros(1, samples, *shape, device=device)
    t, condition = (torch.ones(1, samples, dtype=torch.long, device=device) for _ in range(2))
    for _ in range(2):  # the first time, cuDNN tries algorithms that it will not use again
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        with torch.set_grad_enabled(trained):
            loss = students(x, t, condition, members=part).square().mean()[None]
        if trained:
            students.backward(loss, part)
        most = torch.cuda.max_memory_allocated(device)
        students.zero_grad(set_to_none=True)
    return most


def needed(students: LoRAStudents, shape: tuple[int, ...], batch: int, parameters, peak=peak) -> Need:
    """What an update of `batch` samples a process needs, for training `parameters`; takes seconds. `peak` : what measures.

    Raises :class:`InputError` when not even the few samples fit that it is measured on.
    """
    samples = min(batch, students.microbatch or batch)
    probed, flying = sorted({1, min(PROBED, samples)}), parameters.solves_in_flight
    many = max(2, probed[-1])
    try:
        peaks = {n: peak(students, shape, n) for n in probed}
        one, more = (peak(students, shape, n, False) for n in (1, many)) if flying else (0, 0)
        torch.cuda.empty_cache()
    except torch.OutOfMemoryError:
        n, ways = probed[-1], _lower(parameters, probed[-1])
        raise InputError(f"the GPU's memory does not hold {n} samples in training; {ways}.") from None
    size = sum(p.numel() for p in students.parameters())
    moments, averages = 2 if parameters.optimizer == "adamw8bit" else 8, 4 if parameters.ema else 0
    state = size * 4 * (students.size - 1) // students.size + size * (moments + averages)
    return Need(peaks, state, samples, (more - one) // (many - 1), flying * (1 if set(parameters.guidance) == {1} else 2))


def _lower(p, samples: int) -> str:
    """The settings that lower the need, those first that cost nothing but time."""
    ways = {
        "gradient_checkpointing = true": not p.gradient_checkpointing,
        f"microbatch below {samples}": samples > 1,
        "optimizer = 'adamw8bit'": p.optimizer != "adamw8bit",
        "ema = 0": p.ema,
        f"solves_in_flight below {p.solves_in_flight}": p.solves_in_flight,
        "fewer horizons, guidance scales and seeds in a group": True,
        f"width below {p.width}": True,
        "a lower resolution": True,
    }
    return f"it is lowered by {', '.join(way for way, helps in ways.items() if helps)}"


def check(need: Need, available: int, parameters) -> None:
    """Raise :class:`InputError` when `need` exceeds the `available` bytes, naming the settings that lower it."""
    if need.total > available:
        needs, has = f"{need.total / GIB:.1f} GiB of GPU memory", f"{available / GIB:.1f} GiB can be had"
        raise InputError(f"training needs about {needs}, and {has}; {_lower(parameters, need.samples)}.")


def check_own(students, dtype: torch.dtype, parameters) -> None:
    """Raise :class:`InputError` for students with UNets of their own that cannot train: in float16, or for want of memory.

    Weights and averages take 4 bytes each, and what trains 12 more; activations are left out.
    """
    if dtype == torch.float16:
        raise InputError("precision = 'fp16' needs a loss scale, which width = 0 has not; allowed: bf16 and fp32, or a width.")
    weights = list(students.parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad)
    need = sum(p.numel() for p in weights) * (8 if parameters.ema else 4) + 12 * trained
    if weights[0].is_cuda and need > (has := available(weights[0].device)):
        ways = "it is lowered by fewer students in a group, lora_rank above 0, and most by a width above 0, which shares one UNet"
        raise InputError(f"{students.size} UNets need at least {need / GIB:.1f} GiB of GPU memory, and {has / GIB:.1f} GiB can be had; {ways}.")


def available(device: torch.device) -> int:
    """Bytes that this process may use in all: what is free, and what it holds already."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
