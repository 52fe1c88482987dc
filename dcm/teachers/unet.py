"""A class-conditional diffusers UNet as teacher: v-prediction on SDXL's ``scaled_linear`` schedule.

The network is called with the integer timestep t itself (1..T). (diffusers' own schedulers call it with t - 1.)
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcm.schedule import NoiseSchedule
from dcm.support.errors import InputError
from dcm.support.files import read_weights, write_weights
from dcm.teachers import frozen


@dataclass(frozen=True)
class UNetConfig:
    """What it takes to rebuild the network."""

    image_size: int  # a sample is (image_channels, image_size, image_size)
    image_channels: int
    num_classes: int  # conditions are 0 .. num_classes - 1; num_classes itself is the null one
    widths: tuple[int, ...]  # channels at each resolution, each half the one before
    attention: tuple[bool, ...]  # whether each resolution has self-attention
    layers: int = 2  # residual blocks a resolution
    head_width: int = 32  # channels of an attention head
    groups: int = 32  # of group normalisation; divides every width
    dropout: float = 0.0
    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012


def build_unet(config: UNetConfig) -> nn.Module:
    """The diffusers ``UNet2DModel`` that `config` describes, with fresh weights."""
    from diffusers import UNet2DModel  # here, since importing diffusers takes seconds

    down = tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in config.attention)
    up = tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(config.attention))
    return UNet2DModel(
        sample_size=config.image_size, in_channels=config.image_channels, out_channels=config.image_channels,
        down_block_types=down, up_block_types=up, block_out_channels=tuple(config.widths),
        layers_per_block=config.layers, attention_head_dim=config.head_width, norm_num_groups=config.groups,
        dropout=config.dropout, num_class_embeds=config.num_classes + 1, add_attention=any(config.attention),
    )  # fmt: skip


class UNetTeacher(nn.Module):
    """A :class:`~dcm.teacher.Teacher` whose network predicts the velocity ``v = alpha_t eps - sigma_t x_0``.

    Source: Salimans & Ho 2022, appendix D: ``eps = sigma_t x_t + alpha_t v``, ``x_0 = alpha_t x_t - sigma_t v``.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        from diffusers import DDPMScheduler

        self.config, self.num_classes, self.autocast = config, config.num_classes, False
        self.unet = build_unet(config)
        ddpm = DDPMScheduler(config.timesteps, config.beta_start, config.beta_end, beta_schedule="scaled_linear")
        self.schedule = NoiseSchedule.from_betas(ddpm.betas)
        self.shape = (config.image_channels, config.image_size, config.image_size)
        self._compiled: dict[int, Callable] = {}  # by batch size
        self._frozen: tuple[nn.Module, ...] = ()  # in a tuple: no part of the teacher's own weights

    def accelerate(self, compile: bool = True) -> "UNetTeacher":
        """Make it fast on a GPU: channels-last memory, bfloat16 matrix products, torch.compile at fixed shapes.

        A new batch size compiles anew, which takes the better part of a minute: keep to one or two, or leave
        `compile` off and name those that matter to :meth:`compile_for`.
        """
        self.autocast = True
        self.unet.to(memory_format=torch.channels_last)
        if compile:
            self.unet.compile(dynamic=False)
        return self

    def freeze(self, precision: str = "auto", dtype: torch.dtype = torch.bfloat16) -> "UNetTeacher":
        """Evaluate the network, and it alone, by a :func:`~dcm.teachers.frozen.frozen_copy` of what it is now."""
        self._frozen, self._compiled = (frozen.frozen_copy(self.unet, dtype, precision),), {}
        return self

    def compile_for(self, batch: int) -> None:
        """Compile the network for calls with exactly `batch` samples, at the first such call; others stay as they are."""
        if batch not in self._compiled:
            self._compiled[batch] = torch.compile((*self._frozen, self.unet)[0].forward, dynamic=False)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's v(x, t, c): `x` (B, *shape), `t` and `condition` (B,) integers; returns float (B, *shape)."""
        network = self._compiled.get(len(x), (*self._frozen, self.unet)[0])
        inputs = x.to(self._frozen[0].dtype) if self._frozen else x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast and not self._frozen):
            return network(inputs, t, class_labels=condition, return_dict=False)[0].to(x.dtype)

    def predict_noise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """eps(x, t, c): `x` (*batch, *shape), `t` (*batch) integers 1..T, `condition` (*batch); returns x's shape."""
        batch = x.shape[: x.ndim - len(self.shape)]
        t = torch.as_tensor(t, device=x.device).expand(batch)
        flat = self.velocity(x.reshape(-1, *self.shape), t.reshape(-1), condition.expand(batch).reshape(-1))
        return self.schedule.sigma(t, x) * x + self.schedule.alpha(t, x) * flat.reshape(x.shape)

    def null_condition(self, condition: Tensor) -> Tensor:
        """The null class, in `condition`'s shape."""
        return torch.full_like(condition, self.num_classes)

    def save(self, folder: Path, provenance: dict | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Write weights.safetensors and config.json, which names the weights' SHA-256 and their `provenance`."""
        tensors = {name: tensor.to(dtype) for name, tensor in self.unet.state_dict().items()}
        write_weights(folder, tensors, {"unet": asdict(self.config), "provenance": provenance or {}})

    @classmethod
    def load(cls, folder: Path) -> "UNetTeacher":
        """What :meth:`save` wrote, frozen, in float32; raises :class:`InputError` for a missing, altered or foreign file."""
        tensors, about = read_weights(folder)
        try:
            settings: Any = {n: tuple(v) if isinstance(v, list) else v for n, v in about["unet"].items()}
            teacher = cls(UNetConfig(**settings))
            teacher.unet.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: weights.safetensors does not fit config.json's network: {line}.") from error
        return teacher.eval().requires_grad_(False)
