"""What a run runs on: its device, threads, and processes, one a GPU, which average their gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dcm.support.errors import InputError


def find_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one. Raises :class:`InputError` for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda' is not possible: no CUDA GPU is present; allowed here: auto, cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def ready_device(device: torch.device, threads: int) -> None:
    """Settings of torch that every process of a run shares."""
    torch.set_num_threads(threads)  # fixed, not "all cores": the sums' order, and so the results, depend on it
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def peak_gib(device: torch.device) -> float:
    """GiB of a GPU's memory that this process has held at most; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


class Processes:
    """The processes that share a run; without an `accelerator`, one process alone.

    Each draws the whole batch and works on its own rows. ``rank``, ``size`` : this process's number, and how many there
    are. ``first`` : whether it writes files.
    """

    def __init__(self, accelerator=None):
        self.accelerator = accelerator
        self.rank, self.size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        self.first = self.rank == 0

    def rows(self, batch: int) -> slice:
        """Rows of a batch that are this process's. Raises :class:`InputError` when the batch cannot be shared evenly."""
        check_shareable(batch, self.size)
        own = batch // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place and in one message."""
        if self.size > 1:
            each = list(tensors)
            mean = self.accelerator.reduce(torch.cat([t.flatten() for t in each]), "mean")
            for tensor, part in zip(each, mean.split([t.numel() for t in each])):
                tensor.copy_(part.view_as(tensor))

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over the processes."""
        return tensor if self.size == 1 else self.accelerator.reduce(tensor, "sum")

    def total(self, count: int) -> int:
        """Sum of a count over the processes."""
        return count if self.size == 1 else int(self.sum(torch.tensor([count], device=self.accelerator.device)))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()


def check_shareable(batch: int, processes: int) -> None:
    """Raise :class:`InputError` for a batch that processes cannot share evenly."""
    if batch % processes:
        raise InputError(f"batch = {batch} cannot be shared by {processes} processes; allowed: multiples of {processes}.")


ALONE = Processes()
