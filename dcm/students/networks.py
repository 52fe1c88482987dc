"""Students of the teacher's architecture."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from dcm.students.lora import TARGETS
from dcm.support.errors import InputError
from dcm.teachers.frozen import base_weights
from dcm.teachers.unet import ask


@cache
def _compiled() -> Callable[..., Tensor]:
    """One compiled function for all networks: of the same architecture, only the first takes the time of compiling."""
    return torch.compile(ask, dynamic=False)


class UNetStudent(nn.Module):
    """A student: the architecture of the teacher's `config`, called as ``network(x, t, condition)``; predicts what that does.

    ``autocast`` computes in bfloat16, ``compiled`` by torch.compile.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.unet = config, config.build()
        self.autocast = self.compiled = False

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's output (B, C, H, W)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return (_compiled() if self.compiled else ask)(self.unet, self.config, x, t, condition).to(x.dtype)

    def adapt(self, rank: int) -> None:
        """Freeze the network under a LoRA adapter (Hu et al. 2021) of this rank and alpha, as the paper's students have.

        The adapter starts at zero. Its first factor is drawn by peft from torch's global generator.
        Raises :class:`InputError` where peft is not installed.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            why = "needs the package peft, which is not installed"
            raise InputError(f"lora_rank = {rank} {why}; allowed here: 0.") from None
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), self.unet)

    def start_as(self, teacher: nn.Module) -> None:
        """Take over the weights of the teacher's UNet; an adapter over them stays."""
        own = base_weights(self.unet)
        for name, value in teacher.state_dict().items():
            own[name].copy_(value)
