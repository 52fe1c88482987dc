"""The device that a run uses, and the settings of torch that all its processes share."""

from __future__ import annotations

import torch

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
