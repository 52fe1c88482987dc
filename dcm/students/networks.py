"""Students of the teacher's architecture."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from dcm.students.lora import TARGETS, save_adapter
from dcm.support.errors import InputError
from dcm.teachers.frozen import base_weights
from dcm.teachers.unet import ask


@cache
def _compiled() -> Callable[..., Tensor]:
    """One compiled function for all networks: of the same architecture, only the first takes the time of compiling."""
    return torch.compile(ask, dynamic=False)


def adapt(unet: nn.Module, rank: int) -> None:
    """Freeze a network under a LoRA adapter (Hu et al. 2021) of this rank and alpha, as the paper's students have.

    The adapter starts at zero. Its first factor is drawn by peft from torch's global generator.
    Raises :class:`InputError` where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        why = "needs the package peft, which is not installed"
        raise InputError(f"lora_rank = {rank} {why}; allowed here: 0.") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), unet)


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

    def start_as(self, teacher: nn.Module) -> None:
        """Take over the weights of the teacher's UNet; an adapter over them stays."""
        own = base_weights(self.unet)
        for name, value in teacher.state_dict().items():
            own[name].copy_(value)


def _keep_adapter(module: nn.Module, state: dict[str, Tensor], prefix: str, _) -> None:
    for name in [n for n in state if n.startswith(prefix) and "lora_" not in n]:
        del state[name]


def _ask_for_adapter(module: nn.Module, keys) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if "lora_" in name]


class PromptedStudent(nn.Module):
    """A student with an SDXL UNet of its own: a copy of the teacher's in float32, trained whole or under an adapter.

    `network` : the teacher's :class:`~dcm.teachers.sdxl.PromptedUNet`; its prompts and precision are used, its weights
    copied. `rank` : of the adapter, 0 for none; its weights alone are then the student's state.
    """

    def __init__(self, network, rank: int = 0):
        super().__init__()
        self.unet, self._teacher = type(network.unet).from_config(network.unet.config), (network,)
        self.unet.load_state_dict({name: weight.float() for name, weight in base_weights(network.unet).items()})
        self.unet.to(network.device)
        if rank:
            adapt(self.unet, rank)
            # The teacher's weights beneath would make a file of many students many times as large.
            self.register_state_dict_post_hook(_keep_adapter)
            self.register_load_state_dict_post_hook(_ask_for_adapter)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The noise (B, C, h, w), computed in the teacher's precision."""
        [network] = self._teacher
        text, added = network.prompts.of(condition, x.dtype)
        with torch.autocast(x.device.type, network.dtype, enabled=network.dtype != torch.float32):
            return self.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0].to(x.dtype)

    def save(self, folder: Path) -> None:
        """Write the network, or its adapter alone, as diffusers reads it."""
        if hasattr(self.unet, "peft_config"):
            save_adapter(self.unet, "default", folder)
        else:
            self.unet.save_pretrained(folder)
