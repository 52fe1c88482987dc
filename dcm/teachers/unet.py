"""A diffusers UNet as teacher: one that is trained here, or one that a diffusers pipeline brings along.

Timesteps here are t = 1..T, and t = 0 is data. A network that is trained here is called with t itself. Networks of diffusers
pipelines were trained with 0..T - 1, the index into the table of betas, so they are called with t - 1: ``offset``.
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

UNGUIDED = "guidance 1, or null_class = true where the network's last class stands for none"


def ask(network: Callable, config, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """A network's output (B, *shape), at `t` (B,) counted as it was trained, with classes where it takes them."""
    return network(x, t - config.offset, class_labels=condition if config.labelled else None, return_dict=False)[0]


@dataclass(frozen=True)
class UNetConfig:
    """A network that is trained here: class-conditional v-prediction on SDXL's ``scaled_linear`` schedule."""

    # Of every such network, so no fields: see :class:`PipelineConfig`.
    prediction, offset, labelled, null_class = "v_prediction", 0, True, True

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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.image_channels, self.image_size, self.image_size

    @property
    def betas(self) -> Tensor:
        """Of the noise schedule, (T,)."""
        from diffusers import DDPMScheduler  # here, since importing diffusers takes seconds

        return DDPMScheduler(self.timesteps, self.beta_start, self.beta_end, beta_schedule="scaled_linear").betas

    def build(self) -> nn.Module:
        """The diffusers ``UNet2DModel``, with fresh weights."""
        from diffusers import UNet2DModel

        down = tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in self.attention)
        up = tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(self.attention))
        return UNet2DModel(
            sample_size=self.image_size, in_channels=self.image_channels, out_channels=self.image_channels,
            down_block_types=down, up_block_types=up, block_out_channels=tuple(self.widths),
            layers_per_block=self.layers, attention_head_dim=self.head_width, norm_num_groups=self.groups,
            dropout=self.dropout, num_class_embeds=self.num_classes + 1, add_attention=any(self.attention),
        )  # fmt: skip


@dataclass(frozen=True)
class PipelineConfig:
    """A network and schedule that a diffusers pipeline brings along; read by :func:`dcm.teachers.pipeline.read_pipeline`."""

    network: dict[str, Any]  # the configuration of its UNet2DModel
    betas: tuple[float, ...]  # of its scheduler, (T,)
    prediction: str  # what the network's output is: epsilon, v_prediction or sample
    null_class: bool  # whether the last of the network's classes stands for none
    offset = 1  # what is taken from t = 1..T for the network

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        size = self.network["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.network["in_channels"], height, width

    @property
    def labelled(self) -> bool:
        """Whether the network takes classes."""
        return self.network["num_class_embeds"] is not None

    @property
    def num_classes(self) -> int:
        """Number of classes, the null one not counted; 1 where the network takes none."""
        return (self.network["num_class_embeds"] or 1) - self.null_class

    def build(self) -> nn.Module:
        """The diffusers ``UNet2DModel``, with fresh weights."""
        from diffusers import UNet2DModel

        return UNet2DModel.from_config(self.network)


class UNetTeacher(nn.Module):
    """A :class:`~dcm.teacher.Teacher` whose network predicts the noise, x_0, or the velocity ``v = alpha_t eps - sigma_t x_0``.

    Source of v: Salimans & Ho 2022, appendix D: ``eps = sigma_t x_t + alpha_t v``, ``x_0 = alpha_t x_t - sigma_t v``.
    """

    def __init__(self, config: UNetConfig | PipelineConfig) -> None:
        super().__init__()
        self.config, self.num_classes, self.autocast = config, config.num_classes, False
        self.unet = config.build()
        self.schedule, self.shape = NoiseSchedule.from_betas(config.betas), config.shape
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

    def output(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """What the network predicts: `x` (B, *shape), `t` (1..T) and `condition` (B,); returns float (B, *shape)."""
        network = self._compiled.get(len(x), (*self._frozen, self.unet)[0])
        inputs = x.to(self._frozen[0].dtype) if self._frozen else x
        for copy in self._frozen:
            frozen.calibrate(copy, lambda: ask(copy, self.config, inputs, t, condition))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast and not self._frozen):
            return ask(network, self.config, inputs, t, condition).to(x.dtype)

    def predict_noise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """eps(x, t, c): `x` (*batch, *shape), `t` (*batch) integers 1..T, `condition` (*batch); returns x's shape."""
        batch = x.shape[: x.ndim - len(self.shape)]
        t = torch.as_tensor(t, device=x.device).expand(batch)
        flat = self.output(x.reshape(-1, *self.shape), t.reshape(-1), condition.expand(batch).reshape(-1))
        out, alpha, sigma = flat.reshape(x.shape), self.schedule.alpha(t, x), self.schedule.sigma(t, x)
        if self.config.prediction == "v_prediction":
            return sigma * x + alpha * out
        return out if self.config.prediction == "epsilon" else (x - alpha * out) / sigma

    def null_condition(self, condition: Tensor) -> Tensor:
        """The null class, in `condition`'s shape; raises :class:`InputError` where the network has none."""
        if not self.config.null_class:
            raise InputError(f"this teacher was trained without a null class, which guidance needs; allowed: {UNGUIDED}.")
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
            teacher = cls((PipelineConfig if "network" in settings else UNetConfig)(**settings))
            teacher.unet.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: weights.safetensors does not fit config.json's network: {line}.") from error
        return teacher.eval().requires_grad_(False)
